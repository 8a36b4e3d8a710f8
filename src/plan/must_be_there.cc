#include "plan/must_be_there.h"

#include <algorithm>

#include "plan/state.h"

namespace refrain::plan {

int64_t must_be_there(const Problem& problem, OpId place) {
  const int64_t bytes = problem.fixed[static_cast<size_t>(2 * place + 1)];
  if (place == problem.ends) return bytes;
  return std::max(bytes + std::max<int64_t>(0, problem.made[static_cast<size_t>(place)] + problem.op(place).workspace),
                  problem.fixed[static_cast<size_t>(2 * place + 2)]);
}

}  // namespace refrain::plan
