#include "memory/refusals.h"

#include <algorithm>
#include <array>
#include <new>
#include <utility>

#include "base/thread_owned.h"
#include "refrain/refusal.h"

namespace refrain {
namespace {

struct RecentRefusals {
  std::array<Refusal, 16> ring;
  int64_t count = 0;

  Refusal& at(int64_t number) { return ring[static_cast<size_t>(number) % ring.size()]; }
};

}  // namespace

void note_refusal(const OutOfMemory& error) noexcept {
  try {
    auto& recent = thread_owned<RecentRefusals>();
    Refusal refusal{
        .number = recent.count + 1, .message = error.what(), .reason = error.reason(), .numbers = error.numbers()};
    recent.at(++recent.count) = std::move(refusal);
  } catch (const std::bad_alloc&) {
    // the exception itself has all of it
  }
}

std::optional<Refusal> find_refusal(std::string_view text) {
  auto& recent = thread_owned<RecentRefusals>();
  const int64_t oldest = std::max<int64_t>(recent.count - static_cast<int64_t>(recent.ring.size()), 0);
  for (int64_t number = recent.count; number > oldest; --number) {
    const auto& refusal = recent.at(number);
    if (text.empty() || text.find(refusal.message) != std::string_view::npos) return refusal;
  }
  return std::nullopt;
}

}  // namespace refrain
