#include "capi/errors.h"

#include <c10/util/Exception.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <string>

#include "refrain/bytes.h"
#include "refrain/refusal.h"
#include "refrain/torch_error.h"
#include "refrain/version.h"

namespace refrain::capi {
namespace {

struct LastError {
  int32_t code = REFRAIN_OK;
  std::string message;
  refrain_out_of_memory_t numbers{};
};

LastError& last_error() {
  thread_local LastError error;
  return error;
}

int32_t code_of(const std::exception& error) {
  // `OffloadError` and the others are `c10::Error`s too: ours first
  if (dynamic_cast<const OutOfMemory*>(&error)) return REFRAIN_OUT_OF_MEMORY;
  if (dynamic_cast<const CheckpointError*>(&error)) return REFRAIN_CHECKPOINT_ERROR;
  if (dynamic_cast<const OffloadError*>(&error)) return REFRAIN_OFFLOAD_ERROR;
  if (dynamic_cast<const DistributedError*>(&error)) return REFRAIN_DISTRIBUTED_ERROR;
  if (dynamic_cast<const InvalidArgument*>(&error)) return REFRAIN_INVALID_ARGUMENT;
  if (dynamic_cast<const FormatError*>(&error)) return REFRAIN_FORMAT_ERROR;
  if (dynamic_cast<const FileError*>(&error)) return REFRAIN_FILE_ERROR;
  if (dynamic_cast<const EnvironmentError*>(&error)) return REFRAIN_ENVIRONMENT_ERROR;
  if (dynamic_cast<const InternalError*>(&error)) return REFRAIN_INTERNAL_ERROR;
  if (dynamic_cast<const CallbackFailed*>(&error)) return REFRAIN_CALLBACK_FAILED;
  if (dynamic_cast<const c10::Error*>(&error)) return REFRAIN_TORCH_ERROR;
  return REFRAIN_OTHER_ERROR;
}

refrain_out_of_memory_t numbers_of(OutOfMemoryReason reason, const OutOfMemoryNumbers& numbers) {
  return {.reason = static_cast<int32_t>(reason),
          .unused = 0,
          .requested = numbers.requested,
          .in_use = numbers.in_use,
          .limit = numbers.limit,
          .min_limit = numbers.min_limit};
}

void note(const std::exception& error) {
  auto& last = last_error();
  last.code = code_of(error);
  const auto* const torch_error = dynamic_cast<const c10::Error*>(&error);
  last.message = torch_error ? torch_error->what_without_backtrace() : error.what();
  if (const auto* const memory = dynamic_cast<const OutOfMemory*>(&error))
    last.numbers = numbers_of(memory->reason(), memory->numbers());
}

}  // namespace

int32_t note_exception() noexcept {
  try {
    try {
      throw;
    } catch (const std::exception& error) {
      note(error);
    } catch (...) {
      last_error().code = REFRAIN_OTHER_ERROR;
      last_error().message = "[refrain] an exception that is no std::exception";
    }
    return last_error().code;
  } catch (...) {
    // no memory even for the message
    return REFRAIN_OTHER_ERROR;
  }
}

void require(const void* argument, const char* function, const char* name) {
  if (!argument)
    throw InvalidArgument(std::string("[") + function + "] `" + name + "` is null, expected a pointer to something");
}

void fill(void* to, size_t size, const void* from, size_t from_size, const char* function) {
  require(to, function, "a struct to fill");
  std::memcpy(to, from, std::min(size, from_size));
}

char* owned_text(std::string_view text) {
  auto* const copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (!copy) throw std::bad_alloc();
  std::memcpy(copy, text.data(), text.size());
  copy[text.size()] = '\0';
  return copy;
}

}  // namespace refrain::capi

using namespace refrain;

int32_t refrain_api_version(void) { return REFRAIN_C_API_VERSION; }
const char* refrain_version(void) { return REFRAIN_VERSION; }
const char* refrain_torch_version(void) { return TORCH_VERSION; }

int32_t refrain_last_code(void) { return capi::last_error().code; }
const char* refrain_last_message(void) { return capi::last_error().message.c_str(); }

int32_t refrain_last_out_of_memory(refrain_out_of_memory_t* numbers, size_t size) {
  return capi::guarded([&] {
    const auto& found = capi::last_error().numbers;
    capi::fill(numbers, size, &found, sizeof(found), "refrain_last_out_of_memory");
  });
}

int32_t refrain_find_refusal(const char* text, refrain_out_of_memory_t* numbers, size_t size) {
  int32_t is_found = 0;
  capi::guarded([&] {
    capi::require(text, "refrain_find_refusal", "text");
    const auto refusal = find_refusal(text);
    if (!refusal) return;
    const auto found = capi::numbers_of(refusal->reason, refusal->numbers);
    capi::fill(numbers, size, &found, sizeof(found), "refrain_find_refusal");
    is_found = 1;
  });
  return is_found;
}

void refrain_free(void* text) { std::free(text); }

int32_t refrain_parse_bytes(const char* text, int64_t* bytes) {
  return capi::guarded([&] {
    capi::require(text, "refrain_parse_bytes", "text");
    capi::require(bytes, "refrain_parse_bytes", "bytes");
    *bytes = parse_bytes(text);
  });
}

char* refrain_format_bytes(int64_t bytes) {
  return capi::made([&] { return capi::owned_text(format_bytes(bytes)); });
}
