#include "intercept/storage_copy.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <c10/core/TensorOptions.h>

#include <algorithm>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace refrain::tape {
namespace {

size_t overlap(const c10::Storage& whole, size_t begin, const c10::Storage& part) {
  return begin < whole.nbytes() ? std::min(part.nbytes(), whole.nbytes() - begin) : 0;
}

}  // namespace

at::Tensor byte_tensor(const c10::Storage& storage, size_t begin, size_t n) {
  const auto key = c10::computeDispatchKey(c10::kByte, c10::kStrided, storage.device());
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key),
                                                   caffe2::TypeMeta::Make<uint8_t>());
  impl->set_storage_offset(static_cast<int64_t>(begin));
  impl->set_sizes_contiguous({static_cast<int64_t>(n)});
  return at::Tensor(std::move(impl));
}

void copy_part_into(const c10::Storage& whole, size_t begin, const c10::Storage& part) {
  const auto n = overlap(whole, begin, part);
  BelowTape below;
  if (n > 0) byte_tensor(whole, begin, n).copy_(byte_tensor(part, 0, n));
}

void copy_part_from(const c10::Storage& whole, size_t begin, const c10::Storage& part) {
  const auto n = overlap(whole, begin, part);
  BelowTape below;
  if (n > 0) byte_tensor(part, 0, n).copy_(byte_tensor(whole, begin, n));
}

c10::Storage raw_storage(size_t nbytes, c10::Device device) {
  BelowTape below;
  return at::empty({static_cast<int64_t>(nbytes)}, at::TensorOptions().dtype(at::kByte).device(device)).storage();
}

c10::Storage copy_storage_to(const c10::Storage& storage, c10::Device device) {
  auto copy = raw_storage(storage.nbytes(), device);
  copy_part_into(copy, 0, storage);
  return copy;
}

c10::Storage clone_storage(const c10::Storage& storage) { return copy_storage_to(storage, storage.device()); }

std::pair<size_t, size_t> byte_range(const at::Tensor& tensor) {
  const auto item = tensor.element_size();
  const auto begin = static_cast<size_t>(tensor.storage_offset()) * item;
  if (tensor.numel() == 0) return {begin, begin};
  size_t last = begin;  // strides are never negative
  for (int64_t i = 0; i < tensor.dim(); ++i)
    last += static_cast<size_t>((tensor.size(i) - 1) * tensor.stride(i)) * item;
  return {begin, last + item};
}

bool equal_bytes(const c10::Storage& a, const c10::Storage& b, size_t begin, size_t end) {
  if (begin == end) return true;
  if (a.device().is_cpu())
    return std::memcmp(static_cast<const char*>(a.data()) + begin, static_cast<const char*>(b.data()) + begin,
                       end - begin) == 0;
  BelowTape below;
  return byte_tensor(a, begin, end - begin).equal(byte_tensor(b, begin, end - begin));
}

uint64_t hash_of(const c10::Storage& storage) {
  if (storage.nbytes() == 0) return 0;
  if (storage.device().is_cpu()) return XXH3_64bits(storage.data(), storage.nbytes());
  const auto copy = copy_storage_to(storage, c10::kCPU);
  return XXH3_64bits(copy.data(), copy.nbytes());
}

}  // namespace refrain::tape
