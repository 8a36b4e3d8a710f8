/// Loads the library after somebody else has been at its dispatch key. One argument says who: `free`, nobody; `taken`, a fallback; `late`, one
/// that comes before the first use only; `operator`, kernels of two operators; `copy`, another copy of the library.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <dlfcn.h>
#include <torch/library.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace {

int calls = 0;

void theirs(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  ++calls;
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::Fake);
  op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::Fake), stack);
}

void* load(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library) return library;
  std::printf("FAILED to load: %s\n", dlerror());
  std::exit(1);
}

template <typename Function>
Function* find(void* library, const char* name) {
  if (void* found = dlsym(library, name)) return reinterpret_cast<Function*>(found);
  std::printf("FAILED: %s\n", dlerror());
  std::exit(1);
}

int run_copy(const std::string& original, const std::string& copy) {
  std::filesystem::copy_file(original, copy, std::filesystem::copy_options::overwrite_existing);
  constexpr const char* kSelfTest = "_ZN7refrain9self_testEv";
  find<void()>(load(original), kSelfTest)();
  auto* second = load(copy);
  try {
    find<void()>(second, kSelfTest)();
  } catch (const std::exception& error) {
    const std::string message = error.what();
    if (message.find("another copy of Refrain is loaded") != std::string::npos) return 0;
    std::printf("FAILED: the second copy throws %s\n", message.c_str());
    return 1;
  }
  std::printf("FAILED: the second copy throws nothing\n");
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "copy" && argc == 4) return run_copy(argv[2], argv[3]);
  if (argc != 3) {
    std::printf("expected free, taken, late or operator and the path of the body, or copy and two paths\n");
    return 2;
  }
  torch::Library everything(torch::Library::IMPL, "_", c10::DispatchKey::Fake, __FILE__, __LINE__);
  torch::Library aten(torch::Library::IMPL, "aten", c10::DispatchKey::Fake, __FILE__, __LINE__);
  const auto take = [&] { everything.fallback(torch::CppFunction::makeFromBoxedFunction<&theirs>()); };
  if (mode == "taken") take();
  if (mode == "operator")
    for (const char* name : {"sin", "logaddexp"}) aten.impl(name, torch::CppFunction::makeFromBoxedFunction<&theirs>());

  const auto run = find<int(const char*)>(load(argv[2]), "run_body");
  if (mode == "late") take();
  int failures = run(mode.c_str());
  const auto expect_calls = [&](int expected, const char* where) {
    if (calls == expected) return;
    ++failures;
    std::printf("FAILED: %d calls of the other kernel %s, expected %d\n", calls, where, expected);
  };
  expect_calls(0, "where the tape records");
  if (mode != "free") {
    const auto x = at::ones({4});
    const c10::impl::IncludeDispatchKeyGuard on(c10::DispatchKey::Fake);
    (void)x.sin();
    expect_calls(1, "in its own mode");
  }
  return failures == 0 ? 0 : 1;
}
