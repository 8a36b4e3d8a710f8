#include "apps/refrain/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace refrain::cli {

Progress::Progress(int64_t first, int64_t last, bool quiet)
    : first_(first), last_(last), quiet_(quiet), is_terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() { clear(); }

void Progress::update(int64_t step, const std::string& text) {
  const int64_t total = std::max<int64_t>(last_ - first_, 1);
  const int64_t done = step - first_;
  if (is_terminal_) {
    constexpr int64_t kWidth = 30;
    const auto filled = static_cast<size_t>(kWidth * done / total);
    fmt::print(stderr, "\r[{}{}] {}/{}  {}\x1b[K", std::string(filled, '#'), std::string(kWidth - filled, '.'), step,
               last_, text);
    std::fflush(stderr);
    is_drawn_ = true;
  } else if (!quiet_ && (done == 1 || done == total || done % std::max<int64_t>(total / 10, 1) == 0)) {
    fmt::print("step {}/{}  {}\n", step, last_, text);
    std::fflush(stdout);
  }
}

void Progress::clear() {
  if (is_drawn_) fmt::print(stderr, "\r\x1b[K");
  is_drawn_ = false;
}

}  // namespace refrain::cli
