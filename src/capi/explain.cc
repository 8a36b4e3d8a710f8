#include "refrain/explain.h"

#include <nlohmann/json.hpp>
#include <string>

#include "capi/errors.h"
#include "capi/handles.h"
#include "refrain/explain_plan.h"

using namespace refrain;

struct refrain_saved_observer_t {
  refrain::detail::SavedObserver observer;
};

namespace {

using OrderedJson = nlohmann::ordered_json;

OrderedJson tensors_json(const SavedReport& report) {
  OrderedJson list = OrderedJson::array();
  for (const auto& tensor : report.tensors) {
    list.push_back({{"op", tensor.op},
                    {"sizes", tensor.sizes},
                    {"scalar_type", static_cast<int>(tensor.dtype)},
                    {"bytes", tensor.bytes},
                    {"region", tensor.region},
                    {"kept", tensor.kept},
                    {"referenced_elsewhere", tensor.referenced_elsewhere},
                    {"shared", tensor.shared},
                    {"reason", tensor.reason}});
  }
  return list;
}

std::string saved_json(const SavedReport& report) {
  const OrderedJson document = {{"kept_bytes", report.kept_bytes},
                                {"referenced_elsewhere_bytes", report.referenced_elsewhere_bytes},
                                {"recomputed_bytes", report.recomputed_bytes},
                                {"regions", report.regions},
                                {"hints", report.hints},
                                {"tensors", tensors_json(report)},
                                {"text", report.text()}};
  return document.dump(-1, ' ', false, OrderedJson::error_handler_t::replace);
}

}  // namespace

refrain_saved_observer_t* refrain_saved_observer_open(void) {
  return capi::made([] { return new refrain_saved_observer_t; });
}

char* refrain_saved_observer_text(const refrain_saved_observer_t* observer) {
  return capi::made([&] {
    capi::require(observer, "refrain_saved_observer_text", "observer");
    return capi::owned_text(observer->observer.report().text());
  });
}

char* refrain_saved_observer_json(const refrain_saved_observer_t* observer) {
  return capi::made([&] {
    capi::require(observer, "refrain_saved_observer_json", "observer");
    return capi::owned_text(saved_json(observer->observer.report()));
  });
}

void refrain_saved_observer_close(refrain_saved_observer_t* observer) { delete observer; }
