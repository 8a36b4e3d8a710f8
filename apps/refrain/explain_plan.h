#pragma once

#include <string>

#include "apps/refrain/commands.h"

namespace refrain::cli {

/// Whether `name` means a file rather than a model.
bool is_plan_file(const std::string& name);

/// Explains a file: a plan, `{"kind": "plan", "graph": ..., "schedule": ...}`, or a traced step alone, of kind `graph`.
int run_explain_plan(const ExplainArgs& args);

}  // namespace refrain::cli
