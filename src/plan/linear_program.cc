#include "plan/linear_program.h"

#include <cmath>
#include <limits>

#ifdef REFRAIN_HIGHS_LIBRARY
#include <dlfcn.h>
#include <interfaces/highs_c_api.h>
#endif

namespace refrain::plan {

double LinearProgram::infinite() { return std::numeric_limits<double>::infinity(); }

int32_t LinearProgram::add_column(double cost, double lower, double upper, bool is_integer) {
  cost_.push_back(cost);
  lower_.push_back(lower);
  upper_.push_back(upper);
  is_integer_.push_back(is_integer ? 1 : 0);
  return static_cast<int32_t>(cost_.size()) - 1;
}

void LinearProgram::begin_row(double lower, double upper) {
  row_lower_.push_back(lower);
  row_upper_.push_back(upper);
  row_starts_.push_back(static_cast<int32_t>(row_columns_.size()));
}

void LinearProgram::add(int32_t column, double factor) {
  row_columns_.push_back(column);
  factors_.push_back(factor);
}

#ifdef REFRAIN_HIGHS_LIBRARY

namespace {

/// The functions of the C API that are used. Never unloaded.
struct Highs {
  void* library = nullptr;
  std::string error;
// clang-format off
#define REFRAIN_HIGHS_FUNCTIONS(X) \
  X(Highs_create) X(Highs_destroy) X(Highs_setBoolOptionValue) \
  X(Highs_setIntOptionValue) X(Highs_setDoubleOptionValue) X(Highs_passMip) \
  X(Highs_passLp) X(Highs_run) X(Highs_getModelStatus) \
  X(Highs_getSolution) X(Highs_getObjectiveValue) X(Highs_getDoubleInfoValue)
// clang-format on
#define REFRAIN_DECLARE(name) decltype(&::name) name = nullptr;  // NOLINT(bugprone-macro-parentheses)
  REFRAIN_HIGHS_FUNCTIONS(REFRAIN_DECLARE)
#undef REFRAIN_DECLARE

  Highs() {
    for (const char* path : {REFRAIN_HIGHS_LIBRARY, "libhighs.so", "libhighs.so.1"})
      if (library == nullptr) library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      error = std::string("HiGHS cannot be loaded: ") + dlerror();
      return;
    }
// NOLINTBEGIN(bugprone-macro-parentheses)
#define REFRAIN_LOAD(name)                                                         \
  if ((name = reinterpret_cast<decltype(name)>(dlsym(library, #name))) == nullptr) \
    error = "HiGHS has no function " #name "; expected version 1.7 or later";
    // NOLINTEND(bugprone-macro-parentheses)
    REFRAIN_HIGHS_FUNCTIONS(REFRAIN_LOAD)
#undef REFRAIN_LOAD
#undef REFRAIN_HIGHS_FUNCTIONS
  }
};

const Highs& highs() {
  static const Highs* loaded = new Highs;
  return *loaded;
}

}  // namespace

std::string why_no_linear_programs() { return highs().error; }

LinearProgram::Solution LinearProgram::solve(double seconds, bool relaxed) const {
  Solution solution;
  const Highs& h = highs();
  if (!h.error.empty()) return solution;
  void* model = h.Highs_create();
  h.Highs_setBoolOptionValue(model, "output_flag", 0);
  h.Highs_setIntOptionValue(model, "threads", 1);
  h.Highs_setIntOptionValue(model, "random_seed", 0);
  h.Highs_setDoubleOptionValue(model, "time_limit", seconds);
  h.Highs_setDoubleOptionValue(model, "mip_rel_gap", 0.0);
  h.Highs_setDoubleOptionValue(model, "mip_abs_gap", 0.5);
  const auto columns = static_cast<HighsInt>(cost_.size()), rows = static_cast<HighsInt>(row_lower_.size());
  const auto entries = static_cast<HighsInt>(factors_.size());
  const HighsInt passed =
      relaxed ? h.Highs_passLp(model, columns, rows, entries, kHighsMatrixFormatRowwise, kHighsObjSenseMinimize, 0.0,
                               cost_.data(), lower_.data(), upper_.data(), row_lower_.data(), row_upper_.data(),
                               row_starts_.data(), row_columns_.data(), factors_.data())
              : h.Highs_passMip(model, columns, rows, entries, kHighsMatrixFormatRowwise, kHighsObjSenseMinimize, 0.0,
                                cost_.data(), lower_.data(), upper_.data(), row_lower_.data(), row_upper_.data(),
                                row_starts_.data(), row_columns_.data(), factors_.data(), is_integer_.data());
  solution.status = Status::kLimit;
  if (passed != kHighsStatusError && h.Highs_run(model) != kHighsStatusError) {
    const HighsInt status = h.Highs_getModelStatus(model);
    if (status == kHighsModelStatusOptimal) {
      solution.status = Status::kOptimal;
      solution.cost = solution.bound = h.Highs_getObjectiveValue(model);
    } else if (status == kHighsModelStatusInfeasible) {
      solution.status = Status::kInfeasible;
    }
    double bound = 0.0;
    if (!relaxed && h.Highs_getDoubleInfoValue(model, "mip_dual_bound", &bound) == kHighsStatusOk &&
        std::isfinite(bound))
      solution.bound = bound;
    solution.x.resize(cost_.size());
    std::vector<double> duals(cost_.size()), row_values(row_lower_.size()), row_duals(row_lower_.size());
    if (h.Highs_getSolution(model, solution.x.data(), duals.data(), row_values.data(), row_duals.data()) ==
        kHighsStatusError)
      solution.x.clear();
  }
  h.Highs_destroy(model);
  return solution;
}

#else

std::string why_no_linear_programs() {
  return "this build has no HiGHS; install the Python package highsbox into .venv (scripts/setup does) and rebuild";
}

LinearProgram::Solution LinearProgram::solve(double, bool) const { return {}; }

#endif

}  // namespace refrain::plan
