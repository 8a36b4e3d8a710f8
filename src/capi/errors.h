#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string_view>

#include "refrain/c_api.h"

namespace refrain::capi {

/// A function of the caller returned failure; the caller knows why.
class CallbackFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Notes the exception that is being handled as this thread's last error. @return its code.
int32_t note_exception() noexcept;

/// Calls `fn`; an exception becomes a code.
template <typename F>
int32_t guarded(F&& fn) noexcept {
  try {
    fn();
    return REFRAIN_OK;
  } catch (...) {
    return note_exception();
  }
}

/// Calls `fn`, which makes a handle; an exception becomes null.
template <typename F>
auto made(F&& fn) noexcept -> decltype(fn()) {
  try {
    return fn();
  } catch (...) {
    note_exception();
    return nullptr;
  }
}

/// Refuses a null argument. @throws InvalidArgument naming it.
void require(const void* argument, const char* function, const char* name);

/// Copies `from` as far as the caller's struct goes. @throws InvalidArgument if it is null.
void fill(void* to, size_t size, const void* from, size_t from_size, const char* function);

/// Copies text for the caller, who frees it with `refrain_free`.
char* owned_text(std::string_view text);

}  // namespace refrain::capi
