#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "refrain/bytes.h"
#include "apps/refrain/steps.h"
#include "refrain/error.h"
#include "refrain/memory.h"
#include "refrain/tape.h"

namespace refrain::cli {
namespace {

std::string self_test_result() {
  try {
    self_test();
    return "ok";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace

int run_env(const EnvArgs& args) {
  check_can_write(args.json, "--json");
  Json json = machine_json();
  json["memory_bytes"] = machine_memory();
  json["heap"] = tensor_heap();
  json["models"] = models::model_names();
  const std::string self_test = self_test_result();
  json["self_test"] = self_test;
  if (args.json != "-") {
    for (const auto& [key, value] : json.items()) {
      const std::string text = key == "memory_bytes" ? format_bytes(value.get<Bytes>())
                               : value.is_string()   ? value.get<std::string>()
                                                     : value.dump();
      fmt::print("{:<13} {}\n", key == "memory_bytes" ? "memory" : key, text);
    }
  }
  write_json(args.json, json);
  return self_test == "ok" ? kOk : kInternal;
}

}  // namespace refrain::cli
