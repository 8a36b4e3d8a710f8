#include "intercept/throw_path.h"

#include <unwind.h>

#include <cstdint>
#include <cstring>
#include <exception>

namespace refrain::tape {
namespace {

// Of the table that a compiler writes for the landing pads of a function (.gcc_except_table).
class Reader {
 public:
  explicit Reader(const uint8_t* at) : at_(at) {}
  const uint8_t* at() const { return at_; }
  uint8_t byte() { return *at_++; }
  uint64_t uleb() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t next = byte();
      value |= uint64_t{next & 0x7fU} << shift;
      if (!(next & 0x80)) return value;
    }
  }
  int64_t sleb() {
    int64_t value = 0;
    for (int shift = 0;;) {
      const uint8_t next = byte();
      value |= static_cast<int64_t>(uint64_t{next & 0x7fU} << shift);
      shift += 7;
      if (next & 0x80) continue;
      return (next & 0x40) && shift < 64 ? value | -(int64_t{1} << shift) : value;
    }
  }
  template <typename T>
  uint64_t fixed() {
    T value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return static_cast<uint64_t>(static_cast<int64_t>(value));
  }
  /// A number whose format is in the low bits of `encoding`; what it is relative to does not matter here.
  bool encoded(uint8_t encoding, uint64_t& value) {
    switch (encoding & 0x0f) {
      case 0x00:
        value = fixed<uintptr_t>();
        return true;
      case 0x01:
        value = uleb();
        return true;
      case 0x02:
        value = fixed<uint16_t>();
        return true;
      case 0x03:
        value = fixed<uint32_t>();
        return true;
      case 0x04:
        value = fixed<uint64_t>();
        return true;
      case 0x09:
        value = static_cast<uint64_t>(sleb());
        return true;
      case 0x0a:
        value = fixed<int16_t>();
        return true;
      case 0x0b:
        value = fixed<int32_t>();
        return true;
      case 0x0c:
        value = fixed<int64_t>();
        return true;
      default:
        return false;
    }
  }

 private:
  const uint8_t* at_;
};

constexpr uint8_t kOmitted = 0xff;

size_t size_of(uint8_t encoding) {
  switch (encoding & 0x07) {
    case 0x02:
      return 2;
    case 0x03:
      return 4;
    case 0x04:
      return 8;
    default:
      return sizeof(uintptr_t);
  }
}

// Whether a chain of actions lets an exception of an unknown type by: it has neither `catch (...)` nor a list of what may be thrown.
bool actions_let_by(const uint8_t* action, const uint8_t* types, uint8_t encoding) {
  for (;;) {
    Reader reader(action);
    const int64_t filter = reader.sleb();
    const uint8_t* next = reader.at();
    const int64_t offset = reader.sleb();
    if (filter < 0 || (filter > 0 && !types)) return false;
    if (filter > 0) {
      uint64_t type = 0;
      Reader entry(types - static_cast<size_t>(filter) * size_of(encoding));
      if (!entry.encoded(encoding, type) || type == 0) return false;
    }
    if (offset == 0) return true;
    action = next + offset;
  }
}

bool lets_by(_Unwind_Context* context) {
  const auto* table = reinterpret_cast<const uint8_t*>(_Unwind_GetLanguageSpecificData(context));
  if (!table) return true;
  int before_instruction = 0;
  const uintptr_t address = _Unwind_GetIPInfo(context, &before_instruction);
  const uint64_t offset = address - (before_instruction ? 0 : 1) - _Unwind_GetRegionStart(context);

  Reader reader(table);
  uint64_t ignored = 0;
  const uint8_t start_encoding = reader.byte();
  if (start_encoding != kOmitted && !reader.encoded(start_encoding, ignored)) return false;
  const uint8_t type_encoding = reader.byte();
  const uint8_t* types = nullptr;
  if (type_encoding != kOmitted) {
    const uint64_t distance = reader.uleb();
    types = reader.at() + distance;
  }
  const uint8_t site_encoding = reader.byte();
  const uint64_t length = reader.uleb();
  const uint8_t* const actions = reader.at() + length;
  while (reader.at() < actions) {
    uint64_t begin = 0, size = 0, pad = 0;
    if (!reader.encoded(site_encoding, begin) || !reader.encoded(site_encoding, size) ||
        !reader.encoded(site_encoding, pad))
      return false;
    const uint64_t action = reader.uleb();
    if (offset < begin) return false;  // sorted: it has no entry, so the run time terminates
    if (offset >= begin + size) continue;
    return pad == 0 || action == 0 || actions_let_by(actions + action - 1, types, type_encoding);
  }
  return false;
}

struct Walk {
  uintptr_t frame;
  bool lets_by = true;
  bool arrived = false;
};

_Unwind_Reason_Code step(_Unwind_Context* context, void* data) {
  auto& walk = *static_cast<Walk*>(data);
  // A stack grows downwards: the frames below that of `frame` end before it.
  if (_Unwind_GetCFA(context) > walk.frame) walk.arrived = true;
  if (!walk.arrived) walk.lets_by = lets_by(context);
  return walk.arrived || !walk.lets_by ? _URC_END_OF_STACK : _URC_NO_REASON;
}

}  // namespace

// Not `noexcept`: the walk begins with this frame.
bool can_throw_to(const void* frame) {
  if (std::uncaught_exceptions() > 0) return false;  // a destructor runs because of another exception
  Walk walk{reinterpret_cast<uintptr_t>(frame)};
  _Unwind_Backtrace(&step, &walk);
  return walk.arrived && walk.lets_by;
}

}  // namespace refrain::tape
