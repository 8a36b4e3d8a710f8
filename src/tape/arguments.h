#pragma once

#include <ATen/core/stack.h>
#include <c10/util/SmallVector.h>

#include <memory>
#include <span>
#include <vector>

#include "intercept/for_each_tensor.h"
#include "intercept/inner_tensors.h"
#include "intercept/op_traits.h"
#include "intercept/pointer_index.h"
#include "tape/value.h"

namespace refrain::tape {

/// A tensor among the arguments of an operator that is about to run.
struct Argument {
  const at::Tensor* tensor;   ///< valid until the operator has run
  c10::StorageImpl* storage;  ///< null where the tape cannot name it; valid as long
  const WriteTrait* write;    ///< how the call writes it, or null
  Value* value;               ///< value of `storage` that the tape last knew, or null
  int32_t element;            ///< position in a list argument, or -1
  uint16_t position;          ///< in the schema
};

/// All defined tensors among the arguments, unpacked once for all users.
class Arguments {
 public:
  Arguments(const OpTraits& traits, const torch::jit::Stack& stack) {
    const auto* values = stack.data() + (stack.size() - traits.num_args);
    for_each_tensor(values, traits.num_args, [&](const at::Tensor& tensor, size_t position, int32_t element) {
      const bool plain = has_plain_storage(tensor);
      const auto* write = write_trait(traits, position, values);
      all_plain_ &= plain;
      written_plain_ &= plain || !write;
      list_.push_back({&tensor, plain ? tensor.storage().unsafeGetStorageImpl() : nullptr, write, nullptr, element,
                       static_cast<uint16_t>(position)});
      if (!plain) look_inside(list_.back());
    });
  }
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  auto begin() { return list_.begin(); }
  auto end() { return list_.end(); }
  auto begin() const { return list_.begin(); }
  auto end() const { return list_.end(); }

  /// Tensors inside those that the tape cannot name by storage: an operator that is not recorded reads or writes their
  /// bytes too.
  std::span<Argument> inside() { return inside_ ? std::span<Argument>(inside_->arguments) : std::span<Argument>(); }
  std::span<const Argument> inside() const {
    return inside_ ? std::span<const Argument>(inside_->arguments) : std::span<const Argument>();
  }

  /// Whether the tape can name all of them by storage, or all that the operator writes.
  bool all_plain() const { return all_plain_; }
  bool written_plain() const { return written_plain_; }
  /// @param index  of the caller, for this object only.
  bool has(const c10::StorageImpl* storage, PointerIndex& index) const {
    return index.find(list_, storage, [](const auto& argument) { return argument.storage; }) != PointerIndex::kNone;
  }

 private:
  struct Inside {
    std::vector<std::unique_ptr<at::Tensor>> tensors;
    std::vector<Argument> arguments;
  };

  void look_inside(const Argument& outer) {
    for (auto& tensor : inner_tensors(*outer.tensor)) {
      if (!inside_) inside_ = std::make_unique<Inside>();
      auto* storage = tensor.storage().unsafeGetStorageImpl();
      inside_->tensors.push_back(std::make_unique<at::Tensor>(std::move(tensor)));
      inside_->arguments.push_back(
          {inside_->tensors.back().get(), storage, outer.write, nullptr, outer.element, outer.position});
    }
  }

  c10::SmallVector<Argument, 6> list_;
  std::unique_ptr<Inside> inside_;
  bool all_plain_ = true;
  bool written_plain_ = true;
};

}  // namespace refrain::tape
