#include <fmt/format.h>
#include <torch/serialize/archive.h>

#include "refrain/amp.h"
#include "refrain/error.h"

namespace refrain {
namespace {

c10::IValue read(torch::serialize::InputArchive& archive, const char* key) {
  c10::IValue value;
  if (archive.try_read(key, value)) return value;
  throw FormatError(
      fmt::format("[refrain::GradScaler] load: found no `{}` in the archive; expected one that "
                  "GradScaler::save wrote.",
                  key));
}

}  // namespace

void GradScaler::save(torch::serialize::OutputArchive& archive) const {
  const auto saved = state();
  archive.write("enabled", c10::IValue(saved.has_value()));
  if (!saved) return;
  archive.write("scale", c10::IValue(saved->scale));
  archive.write("growth_factor", c10::IValue(saved->growth_factor));
  archive.write("backoff_factor", c10::IValue(saved->backoff_factor));
  archive.write("growth_interval", c10::IValue(saved->growth_interval));
  archive.write("growth_tracker", c10::IValue(saved->growth_tracker));
}

void GradScaler::load(torch::serialize::InputArchive& archive) {
  if (!read(archive, "enabled").toBool()) return load_state(std::nullopt);
  load_state(GradScalerState{read(archive, "scale").toDouble(), read(archive, "growth_factor").toDouble(),
                             read(archive, "backoff_factor").toDouble(), read(archive, "growth_interval").toInt(),
                             read(archive, "growth_tracker").toInt()});
}

torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive, const GradScaler& scaler) {
  scaler.save(archive);
  return archive;
}

torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, GradScaler& scaler) {
  scaler.load(archive);
  return archive;
}

}  // namespace refrain
