"""A peak budget for torch.compile: the planner's choice of what to recompute, inductor's kernels. Guide:
docs/guide/compile.md; how it works: docs/design/compile.md.

| file | what |
|---|---|
| `api` | what a user calls |
| `session` | one budget: its graphs, their plans, the steps that were measured |
| `steps`, `shares` | a step as it runs; what each of several graphs may take |
| `cut`, `graph`, `cost` | a joint graph, where torch cuts it; as a trace, with times and workspaces |
| `planner` | the C++ planner |
| `emit` | a plan as two graphs |
| `ranks` | one plan for all ranks |
| `pareto` | the command that runs a program under many budgets |
| `inductor` | all that is used of torch's private parts |
"""

from .api import BudgetWarning, CompileOptions, CompileReport, GraphReport, compile_budget, compile_options

__all__ = ["BudgetWarning", "CompileOptions", "CompileReport", "GraphReport", "compile_budget", "compile_options"]
