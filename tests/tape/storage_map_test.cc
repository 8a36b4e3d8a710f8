// The map from storages to values against one of the standard library's.
#include "tape/storage_map.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#include "tape/value.h"

namespace refrain_test {
namespace {

using refrain::tape::StorageMap;
using refrain::tape::Value;

TEST(StorageMap, FindsWhatIsInItAndNothingElse) {
  constexpr size_t kStorages = 600;
  std::vector<c10::Storage> storages;
  std::vector<std::unique_ptr<Value>> values;
  for (size_t i = 0; i < kStorages; ++i) {
    storages.push_back(torch::empty({1}).storage());
    values.push_back(std::make_unique<Value>(storages.back()));
  }
  StorageMap map;
  std::unordered_map<c10::StorageImpl*, Value*> expected;
  std::mt19937 random(7);
  EXPECT_EQ(map.find(storages[0].unsafeGetStorageImpl()), nullptr);
  for (int step = 0; step < 20000; ++step) {
    // grows to all of them, then shrinks to few, again and again
    const bool grows = (step / 2000) % 2 == 0;
    const size_t i = random() % kStorages;
    auto* storage = storages[i].unsafeGetStorageImpl();
    auto* value = values[i].get();
    if (value->key && !grows) {
      map.erase(storage, value);
      value->key = nullptr;
      expected.erase(storage);
    } else if (!value->key && grows) {
      map.insert(storage, value);
      value->key = storage;
      expected[storage] = value;
    }
    ASSERT_EQ(map.size(), expected.size());
    const auto& probe = storages[random() % kStorages];
    const auto found = expected.find(probe.unsafeGetStorageImpl());
    ASSERT_EQ(map.find(probe.unsafeGetStorageImpl()), found == expected.end() ? nullptr : found->second)
        << "step " << step;
    if (step % 500 != 0) continue;
    for (const auto& [known, its] : expected) ASSERT_EQ(map.find(known), its) << "step " << step;
    size_t visited = 0;
    map.for_each([&](Value* each) {
      ++visited;
      EXPECT_EQ(expected.at(each->key), each);
    });
    EXPECT_EQ(visited, expected.size());
  }
}

}  // namespace
}  // namespace refrain_test
