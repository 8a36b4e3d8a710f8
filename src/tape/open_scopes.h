#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace refrain::tape {

class Draws;
class OpWatch;
class Saver;
struct Region;

/// A setting of one thread's guards while they are alive; the youngest overrides. Guards may end in any order.
template <typename T>
class GuardedValue {
 public:
  void set(const void* guard, T value) { values_.emplace_back(guard, std::move(value)); }
  void end(const void* guard) {
    std::erase_if(values_, [&](const auto& entry) { return entry.first == guard; });
  }
  std::optional<T> get() const { return values_.empty() ? std::nullopt : std::optional<T>(values_.back().second); }

 private:
  std::vector<std::pair<const void*, T>> values_;
};

/// A scope that is open on a thread. Fields that it does not use are null.
struct OpenScope {
  const void* owner = nullptr;  ///< its identity
  Region* region = nullptr;
  Saver* saver = nullptr;
  OpWatch* trace = nullptr;
  Draws* draws = nullptr;
  bool is_rerun = false;  ///< the forward of a rerun region
};

}  // namespace refrain::tape
