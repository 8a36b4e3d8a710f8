#pragma once

#include <cstdint>
#include <string>

namespace refrain::cli {

/// Progress of a training run: a bar on standard error if that is a terminal, else about ten lines on standard output.
class Progress {
 public:
  Progress(int64_t first, int64_t last, bool quiet);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// @param step  the one just done.  @param text  what to show beside it.
  void update(int64_t step, const std::string& text);
  /// Removes the bar, so that the next line starts clean.
  void clear();

 private:
  int64_t first_, last_;
  bool quiet_, is_terminal_;
  bool is_drawn_ = false;
};

}  // namespace refrain::cli
