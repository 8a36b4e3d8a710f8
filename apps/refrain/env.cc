#include <ATen/Parallel.h>
#include <fmt/format.h>

#include "apps/refrain/steps.h"
#include "refrain/bytes.h"
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
  Json facts = machine_json();
  facts["memory_bytes"] = machine_memory();
  facts["heap"] = tensor_heap();
  facts["models"] = models::model_names();
  const std::string self_test = self_test_result();
  facts["self_test"] = self_test;
  if (args.json != "-") {
    for (const auto& [key, value] : facts.items()) {
      const std::string text = key == "memory_bytes" ? format_bytes(value.get<Bytes>())
                               : value.is_string()   ? value.get<std::string>()
                                                     : value.dump();
      fmt::print("{:<13} {}\n", key == "memory_bytes" ? "memory" : key, text);
    }
  }
  Json document = new_document("env");
  document.update(facts);
  write_json(args.json, document);
  return self_test == "ok" ? kOk : kInternal;
}

}  // namespace refrain::cli
