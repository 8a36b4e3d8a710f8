#include "apps/refrain/advise_text.h"

#include <fmt/format.h>

#include <algorithm>

namespace refrain::cli {
namespace {

std::string percent(double part) { return fmt::format("{:.0f} %", 100 * part); }

std::string added(double overhead) { return overhead < 0.005 ? "no measurable time" : percent(overhead); }

double share(Bytes part, Bytes whole) {
  return static_cast<double>(part) / static_cast<double>(std::max<Bytes>(whole, 1));
}

const Alternative& with_largest_batch(const std::vector<Alternative>& all) {
  return *std::max_element(all.begin(), all.end(),
                           [](const auto& a, const auto& b) { return a.max_batch < b.max_batch; });
}

void explain_plain(const Situation& now, const std::vector<Alternative>& all, std::vector<std::string>& reasons) {
  const auto& plain = all.front();
  reasons.push_back(
      fmt::format("the baseline fits: it peaks at {}, {} below the limit; at batch {} checkpointing would only "
                  "add time",
                  format_bytes(plain.peak), format_bytes(now.limit - plain.peak), now.batch));
  const auto& widest = with_largest_batch(all);
  if (widest.max_batch > plain.max_batch) {
    reasons.push_back(fmt::format(
        "it pays from batch {} on: {} trains up to batch {}, {:.1f} times as large, and adds {}", plain.max_batch + 1,
        widest.name, widest.max_batch, static_cast<double>(widest.max_batch) / static_cast<double>(plain.max_batch),
        added(widest.overhead)));
  } else {
    reasons.push_back(fmt::format("no strategy trains a larger batch than the baseline, {}", plain.max_batch));
  }
}

void explain_choice(const Situation& now, const std::vector<Alternative>& all, const Alternative& choice,
                    std::vector<std::string>& reasons) {
  const auto& plain = all.front();
  reasons.push_back(fmt::format("the baseline does not fit: it peaks at about {}, {} above the limit",
                                format_bytes(plain.peak), format_bytes(plain.peak - now.limit)));
  if (choice.fits) {
    const auto others = std::count_if(all.begin(), all.end(), [](const auto& c) { return c.fits; }) - 1;
    reasons.push_back(fmt::format("{} fits: it peaks at {} and adds {} to a step{}", choice.name,
                                  format_bytes(choice.peak), added(choice.overhead),
                                  others > 0 ? fmt::format(", the least of the {} that fit", others + 1) : ""));
  } else {
    const int64_t steps = (now.batch + choice.max_batch - 1) / choice.max_batch;
    reasons.push_back(
        fmt::format("no strategy fits batch {}; {} fits the largest, {}: accumulate gradients over {} steps", now.batch,
                    choice.name, choice.max_batch, steps));
  }
  if (plain.max_batch > 0 && &choice != &plain) {
    reasons.push_back(fmt::format(
        "without recomputing: the baseline fits batch {}; gradients accumulated over {} steps are those of batch {} unless "
        "the model has BatchNorm",
        plain.max_batch, (now.batch + plain.max_batch - 1) / plain.max_batch, now.batch));
  }
}

/// Options of `refrain` that build this model.
std::string sizes_of(const models::TrainableModel& model, int64_t batch) {
  const auto& o = model.options();
  std::string text = fmt::format(" --batch {}", batch);
  const std::pair<const char*, int64_t> sizes[] = {{"seq", o.seq},     {"image-size", o.image_size},
                                                   {"depth", o.depth}, {"width", o.width},
                                                   {"vocab", o.vocab}, {"classes", o.classes}};
  for (const auto& [name, value] : sizes) {
    if (value != 0) text += fmt::format(" --{} {}", name, value);
  }
  if (!(o.dropout < 0)) text += fmt::format(" --dropout {}", o.dropout);
  if (o.amp) text += o.amp == torch::kHalf ? " --amp f16" : " --amp bf16";
  return text;
}

}  // namespace

std::vector<std::string> reasons_for(const Situation& now, const std::vector<Alternative>& all,
                                     const Alternative& choice) {
  std::vector<std::string> reasons;
  if (all.front().fits) {
    explain_plain(now, all, reasons);
  } else {
    explain_choice(now, all, choice, reasons);
  }
  const double fixed = share(now.fixed, all.front().peak);
  if (fixed > 0.5) {
    reasons.push_back(
        fmt::format("{} of the baseline peak is weights, gradients and optimizer state, {}, which no strategy "
                    "reduces",
                    percent(std::min(fixed, 1.0)), format_bytes(now.fixed)));
  }
  return reasons;
}

std::string command_for(const Situation& now, const Alternative& choice) {
  return fmt::format("refrain train {}{} --optimizer {} --strategy {} --memory-limit {} --steps 100", now.model.name(),
                     sizes_of(now.model, std::min(now.batch, choice.max_batch)), now.optimizer, choice.name, now.limit);
}

std::string code_for(const models::TrainableModel& model, const std::string& strategy) {
  const std::string include = "#include <refrain/refrain.h>\n";
  const std::string& name = model.name();
  const auto each = [&](const std::string& what, const std::string& where) {
    return include + fmt::format("for (auto& {0} : {1}) x = refrain::checkpoint({0}, x);", what, where);
  };
  const auto row = [&](const std::string& segments) {
    return include + fmt::format("x = refrain::checkpoint_sequential(layers, {}, x);", segments);
  };
  const std::string suggested = "refrain::suggest_segments(layers->size())";
  if (strategy == "none") return "x = model->forward(x);";
  if (strategy == "segments") return row(suggested);
  if (strategy.starts_with("segments:")) return row(strategy.substr(strategy.find(':') + 1));
  if (strategy.starts_with("selective")) {
    const size_t colon = strategy.find(':');
    const std::string policy = colon == std::string::npos ? "compute_intensive" : strategy.substr(colon + 1);
    const bool is_jax = policy == "dots" || policy == "everything" || policy == "nothing";
    return include + fmt::format(
                         "const auto options = refrain::CheckpointOptions().policy(refrain::{}());\n"
                         "for (auto& block : blocks) x = refrain::checkpoint(options, block, x);",
                         is_jax ? policy + "_saveable" : "save_" + policy);
  }
  if (strategy == "per_stage") return each("stage", "stages");
  if (strategy == "aggressive") {
    return include +
           "x = stages[1]->forward(stages[0]->forward(x));\n"
           "for (int i : {2, 3})\n"
           "  for (auto& block : *stages[i]) x = refrain::checkpoint(block, x);";
  }
  if (strategy == "per_layer") return each("layer", "layers");
  if (name == "mlp") return row(fmt::format("refrain::Segments::uniform({})", suggested));
  if (name == "lstm") {
    return include +
           "for (auto& chunk : x.split(16, 1)) {\n"
           "  auto [y, next] = refrain::checkpoint(lstm, chunk, state);\n"
           "  out.push_back(y);\n"
           "  state = next;\n"
           "}";
  }
  return each("block", "blocks");
}

std::string indented(const std::string& lines) {
  std::string text = "  ";
  for (const char c : lines) text += c == '\n' ? std::string("\n  ") : std::string(1, c);
  return text;
}

}  // namespace refrain::cli
