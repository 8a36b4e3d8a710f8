#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/OptionalArrayRef.h>
#include <c10/util/SmallVector.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include "refrain/api.h"

/// The header part of `checkpoint` with `RecomputeMode::kRerunFunction`: copies of the function and its arguments.
namespace refrain {

class CheckpointOptions;

namespace detail {

/// A type with a function `visit_tensors(x, visit)` beside it.
template <typename T, typename Visit>
concept HasVisitTensors = requires(T& x, const Visit& visit) {
  visit_tensors(x, visit);
};

/// Calls `visit` for the tensors and generators in `x`.
/// @param x      one itself, an optional, pair, tuple, array, vector, map or other range of things that hold them, or a
///               type of yours with a function `visit_tensors(x, visit)` beside it. Others hold none.
/// @param visit  takes an `at::Tensor&` or an `at::Generator&`.
template <typename T, typename Visit>
void visit_tensors_in(T& x, const Visit& visit) {
  if constexpr (std::is_const_v<T>) {
    return;
  } else if constexpr (std::is_same_v<T, at::Tensor> || std::is_same_v<T, at::Generator>) {
    visit(x);
  } else if constexpr (requires { x.visit_kept(visit); }) {
    x.visit_kept(visit);
  } else if constexpr (HasVisitTensors<T, Visit>) {
    visit_tensors(x, visit);
  } else if constexpr (requires {
                         x.has_value();
                         *x;
                       }) {
    if (x.has_value()) visit_tensors_in(*x, visit);
  } else if constexpr (requires { std::tuple_size<T>::value; }) {
    std::apply([&](auto&... element) { (visit_tensors_in(element, visit), ...); }, x);
  } else if constexpr (std::ranges::forward_range<T>) {
    if constexpr (std::is_lvalue_reference_v<std::ranges::range_reference_t<T>> &&
                  !std::is_same_v<std::ranges::range_value_t<T>, T>)
      for (auto& element : x) visit_tensors_in(element, visit);
  }
}

/// Returns whether a copy of `T` compiles. It looks at the elements of a range: a vector of things that cannot be
/// copied says that it can.
template <typename T>
consteval bool can_copy() {
  if constexpr (!std::is_copy_constructible_v<T>) {
    return false;
  } else if constexpr (requires { std::tuple_size<T>::value; }) {
    return []<size_t... I>(std::index_sequence<I...>) { return (can_copy<std::tuple_element_t<I, T>>() && ...); }
    (std::make_index_sequence<std::tuple_size_v<T>>());
  } else if constexpr (requires(T & x) {
                         x.has_value();
                         *x;
                       }) {
    return can_copy<std::remove_cvref_t<decltype(*std::declval<T&>())>>();
  } else if constexpr (std::ranges::range<T>) {
    if constexpr (!std::is_same_v<std::ranges::range_value_t<T>, T>) return can_copy<std::ranges::range_value_t<T>>();
  }
  return true;
}

/// Finds the type that holds a copy of what an argument points to, for arguments that only point.
template <typename T>
struct Owner {};
template <typename E>
struct Owner<c10::ArrayRef<E>> {
  using Type = c10::SmallVector<E, 4>;
};
template <typename E>
struct Owner<c10::OptionalArrayRef<E>> {
  using Type = std::optional<c10::SmallVector<E, 4>>;
};
template <typename E>
struct Owner<std::span<E>> {
  using Type = c10::SmallVector<std::remove_cv_t<E>, 4>;
};
template <>
struct Owner<std::string_view> {
  using Type = std::string;
};

/// An argument that only points to what it stands for: an array reference, span or string view.
template <typename T>
concept OnlyPoints = requires {
  typename Owner<std::remove_cvref_t<T>>::Type;
};

/// Whether `T` knows the `std::shared_ptr` that owns it and is kept by that, as modules are. Arrays are kept by
/// pointer, the rest by copy.
template <typename T>
inline constexpr bool kKnowsItsOwner = std::is_lvalue_reference_v<T>&& requires(T x) {
  x.weak_from_this();
};

/// Whether an argument of forwarding type `T` can be kept for a second call.
template <typename T>
inline constexpr bool kCanKeep = kKnowsItsOwner<T> || can_copy<std::decay_t<T>>();

/// Refuses an object of a derived class behind a reference to its base class, of which a copy would be another object.
/// @throws InvalidArgument  always.
[[noreturn]] REFRAIN_API void refuse_base_class();

/// Refuses a null pointer, an empty module holder or an empty function.
/// @throws InvalidArgument  always.
[[noreturn]] REFRAIN_API void throw_null_module();

/// Returns whether `x`, which is to be called, points nowhere: a null pointer, an empty module holder or
/// `std::function`.
template <typename T>
bool is_null(const T& x) {
  if constexpr (std::is_pointer_v<T> || std::is_member_pointer_v<T>)
    return x == nullptr;
  else if constexpr (requires {
                       x.is_empty();
                       x.ptr();
                     })
    return x.is_empty();
  else if constexpr (
      requires {
        x.get();
        *x;
        static_cast<bool>(x);
      } ||
      requires {
        x.target_type();
        static_cast<bool>(x);
      })
    return !x;
  else
    return false;
}

/// Refuses a function that points nowhere; of a member pointer the object, too.
/// @throws InvalidArgument  if one does.
template <typename F, typename... Args>
void refuse_null(const F& fn, const Args&... args) {
  if (is_null(fn)) throw_null_module();
  if constexpr (std::is_member_pointer_v<F> && sizeof...(Args) > 0)
    if (is_null(std::get<0>(std::tie(args...)))) throw_null_module();
}

/// Distinguishes the constructor of `Kept` from a conversion: things like `std::any` are made of anything, a `Kept`
/// too.
struct Keep {};

/// Keeps an argument (forwarding type `T`) for a call to come.
template <typename T>
class Kept {
 public:
  using Value = std::decay_t<T>;
  /// @throws InvalidArgument  if `value` is an object of a class derived from `Value`.
  Kept(Keep, const std::remove_reference_t<T>& value) : value_(value) {
    if constexpr (std::is_polymorphic_v<Value>)
      if (typeid(value) != typeid(Value)) refuse_base_class();
  }
  /// Returns what was kept, as the argument type `As`.
  template <typename As>
  decltype(auto) as() {
    if constexpr (std::is_array_v<std::remove_reference_t<As>> || std::is_function_v<std::remove_reference_t<As>>)
      return (value_);
    else
      return static_cast<As&&>(value_);
  }
  /// Calls `visit` for the tensors and generators in what was kept.
  template <typename Visit>
  void visit_kept(const Visit& visit) {
    visit_tensors_in(value_, visit);
  }

 private:
  Value value_;
};

/// Keeps an object by the `std::shared_ptr` that owns it.
template <typename T>
requires kKnowsItsOwner<T>
class Kept<T> {
 public:
  using Object = std::remove_reference_t<T>;
  /// Keeps, without an owner, a raw pointer to an object that must outlive backward.
  Kept(Keep, Object& object) : object_(object.weak_from_this().lock(), &object) {}
  template <typename As>
  Object& as() {
    return *object_;
  }
  template <typename Visit>
  void visit_kept(const Visit&) {}

 private:
  std::shared_ptr<Object> object_;
};

/// Keeps a copy of what an argument points to.
template <OnlyPoints T>
class Kept<T> {
 public:
  using View = std::remove_cvref_t<T>;
  Kept(Keep, const View& view) {
    if constexpr (requires { view.has_value(); }) {
      if (view.has_value()) owner_.emplace(view->begin(), view->end());
    } else {
      owner_ = {view.begin(), view.end()};
    }
  }
  template <typename As>
  As&& as() {
    if constexpr (requires { owner_.has_value(); })
      view_ = owner_ ? View(*owner_) : View();
    else
      view_ = View(owner_);
    return static_cast<As&&>(view_);
  }
  template <typename Visit>
  void visit_kept(const Visit& visit) {
    visit_tensors_in(owner_, visit);
  }

 private:
  typename Owner<View>::Type owner_;
  View view_{};
};

/// Overloads the call operators of `Fs`.
template <typename... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <typename... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;  // clang before 17 does not deduce it

/// Returns the next input, in the order in which they were saved.
using NextInput = std::function<at::Tensor()>;

/// Opens a region whose function is called again in backward, and closes it when destroyed. Lives on the stack of
/// `checkpoint`.
class REFRAIN_API RerunScope {
 public:
  explicit RerunScope(const CheckpointOptions& options);
  ~RerunScope();
  RerunScope(const RerunScope&) = delete;
  RerunScope& operator=(const RerunScope&) = delete;

  /// Keeps `tensor` (which may be undefined) as an enclosing region keeps what autograd saves.
  void save_input(const at::Tensor& tensor);
  /// Notes a generator among the arguments: its state is restored for the second call, as the default ones' is.
  void save_generator(const at::Generator& generator);
  /// Lets the second call run to its end: the function is `noexcept`, so nothing can be thrown through it.
  void run_whole();
  /// Makes autograd save places instead of tensors from now on.
  /// @param again  calls the function again; `NextInput` gives the inputs in the order they were saved.
  void enter(std::function<void(const NextInput&)> again);
  /// Refuses a function or argument that cannot be copied.
  /// @throws InvalidArgument  always.
  [[noreturn]] void refuse_uncopyable();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace detail
}  // namespace refrain
