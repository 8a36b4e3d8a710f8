#include "train/model_agreement.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

namespace refrain {
namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

std::string describe(const char* kind, const std::string& name, const at::Tensor& tensor) {
  return fmt::format("{} `{}` {} [{}] on {}{}\n", kind, name, c10::toString(tensor.scalar_type()),
                     fmt::join(tensor.sizes(), ", "), c10::DeviceTypeName(tensor.device().type(), true),
                     tensor.requires_grad() ? "" : ", without gradient");
}

}  // namespace

std::string describe(const torch::nn::Module& module, const DataParallelOptions& options) {
  std::string text = fmt::format(
      "option bucket_cap {}\noption first_bucket_cap {}\noption rebuild_buckets {}\noption broadcast_buffers {}\n"
      "option find_unused_parameters {}\noption static_graph {}\noption gradient_as_bucket_view {}\n",
      options.bucket_cap(), options.first_bucket_cap(), options.rebuild_buckets(), options.broadcast_buffers(),
      options.find_unused_parameters(), options.static_graph(), options.gradient_as_bucket_view());
  for (const auto& item : module.named_parameters()) text += describe("parameter", item.key(), item.value());
  for (const auto& item : module.named_buffers()) text += describe("buffer", item.key(), item.value());
  return text;
}

std::string first_difference(const std::vector<std::string>& descriptions) {
  std::vector<std::vector<std::string>> by_rank;
  size_t longest = 0;
  for (const auto& text : descriptions) {
    by_rank.push_back(lines_of(text));
    longest = std::max(longest, by_rank.back().size());
  }
  for (size_t line = 0; line < longest; ++line) {
    std::map<std::string, std::vector<size_t>> ranks;
    for (size_t rank = 0; rank < by_rank.size(); ++rank) {
      ranks[line < by_rank[rank].size() ? by_rank[rank][line] : "no more"].push_back(rank);
    }
    if (ranks.size() == 1) continue;
    std::vector<std::string> parts;
    for (const auto& [text, which] : ranks) {
      parts.push_back(fmt::format("rank{} {}: {}", which.size() == 1 ? "" : "s", fmt::join(which, ", "), text));
    }
    return fmt::format("{}", fmt::join(parts, "; "));
  }
  return "";
}

}  // namespace refrain
