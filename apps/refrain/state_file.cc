#include "apps/refrain/state_file.h"

#include <fmt/format.h>

#include <sstream>

#include "base/atomic_file.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace {

constexpr int64_t kVersion = 2;
constexpr const char* kExpected = "a file that 'refrain train --save' wrote";

void check_same_run(const std::string& path, const Json& saved, const Json& wanted) {
  for (const auto& [key, value] : wanted.items()) {
    const Json found = saved.contains(key) ? saved.at(key) : Json();
    if (found == value) continue;
    throw InvalidArgument(
        fmt::format("--resume '{}': found {} {}, this run has {}; give the same options as when it was "
                    "saved",
                    path, key, found.dump(), value.dump()));
  }
}

}  // namespace

void save_state(const std::string& path, const Json& run, const torch::nn::Module& module,
                const torch::optim::Optimizer& optimizer, const GradScaler& scaler, const Position& position) {
  torch::serialize::OutputArchive archive, module_archive, optimizer_archive, scaler_archive;
  module.save(module_archive);
  optimizer.save(optimizer_archive);
  scaler.save(scaler_archive);
  archive.write("refrain_version", c10::IValue(kVersion));
  archive.write("run", c10::IValue(run.dump()));
  archive.write("step", c10::IValue(position.step));
  archive.write("lr", c10::IValue(position.lr));
  archive.write("generators", torch::stack(position.generators), /*is_buffer=*/true);
  archive.write("module", module_archive);
  archive.write("optimizer", optimizer_archive);
  archive.write("scaler", scaler_archive);
  std::ostringstream bytes;
  archive.save_to(bytes);
  write_file_atomically(path, bytes.str());
}

Position load_state(const std::string& path, const Json& run, torch::nn::Module& module,
                    torch::optim::Optimizer& optimizer, GradScaler& scaler) {
  const std::string bytes = read_file(path, kExpected);
  if (bytes.empty())
    throw FormatError(fmt::format("'{}': found an empty file; expected {}; save again", path, kExpected));
  try {
    torch::serialize::InputArchive archive, module_archive, optimizer_archive, scaler_archive;
    archive.load_from(bytes.data(), bytes.size());
    c10::IValue version, saved_run, step, lr;
    torch::Tensor generators;
    archive.read("refrain_version", version);
    if (version.toInt() != kVersion) {
      throw FormatError(fmt::format("'{}': found version {}; expected {}; use the refrain that saved it", path,
                                    version.toInt(), kVersion));
    }
    archive.read("run", saved_run);
    archive.read("step", step);
    archive.read("lr", lr);
    archive.read("generators", generators, /*is_buffer=*/true);
    archive.read("module", module_archive);
    archive.read("optimizer", optimizer_archive);
    archive.read("scaler", scaler_archive);
    check_same_run(path, Json::parse(saved_run.toStringRef()), run);
    module.load(module_archive);
    optimizer.load(optimizer_archive);
    scaler.load(scaler_archive);
    Position position{.step = step.toInt(), .lr = lr.toDouble()};
    // a generator wants its state at the beginning of a storage
    for (const auto& state : generators.unbind()) position.generators.push_back(state.clone());
    return position;
  } catch (const c10::OutOfMemoryError&) {
    throw;
  } catch (const c10::Error&) {
    throw FormatError(fmt::format("'{}': found {} bytes that are not a whole state file; expected {}; save again", path,
                                  bytes.size(), kExpected));
  } catch (const Json::exception&) {
    throw FormatError(
        fmt::format("'{}': found a state file of something else; expected {}; save again", path, kExpected));
  }
}

}  // namespace refrain::cli
