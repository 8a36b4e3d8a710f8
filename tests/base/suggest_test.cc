#include "base/suggest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace refrain {
namespace {

using Names = std::vector<std::string>;

TEST(EditDistance, CountsEdits) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("abc", ""), 3);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("GPT", "gpt"), 0);
}

TEST(EditDistance, ASwapIsOneEdit) {
  EXPECT_EQ(edit_distance("polciy", "policy"), 1);
  EXPECT_EQ(edit_distance("ca", "abc"), 3);  // no edit inside a swap: the restricted form
}

TEST(EditDistance, IsSymmetricAndZeroOnlyForEqualNames) {
  std::mt19937 random(7);
  const auto word = [&] {
    std::string text(random() % 6, ' ');
    for (char& c : text) c = static_cast<char>('a' + random() % 3);
    return text;
  };
  for (int i = 0; i < 3000; ++i) {
    const std::string a = word();
    const std::string b = word();
    EXPECT_EQ(edit_distance(a, b), edit_distance(b, a)) << a << " " << b;
    EXPECT_EQ(edit_distance(a, b) == 0, a == b) << a << " " << b;
    EXPECT_LE(edit_distance(a, b), static_cast<int>(std::max(a.size(), b.size())));
  }
}

TEST(Nearest, FindsTheMeantName) {
  const Names models{"mlp", "gpt", "resnet", "lstm", "unet"};
  EXPECT_EQ(nearest("restnet", models), Names{"resnet"});
  EXPECT_EQ(nearest("GTP", models), Names{"gpt"});
  EXPECT_EQ(nearest("ltsm", models), Names{"lstm"});
  EXPECT_EQ(nearest("transformer", models), Names{});
}

TEST(Nearest, PutsTheNearestFirstAndKeepsTheOrderOfTies) {
  EXPECT_EQ(nearest("--buget", {"--target", "--budgets", "--budget"}), (Names{"--budget", "--budgets"}));
  EXPECT_EQ(nearest("abcdef", {"abcdeZ", "abcdeY", "abcdef"}), (Names{"abcdef", "abcdeZ", "abcdeY"}));
}

TEST(Nearest, GivesThreeAtMost) {
  EXPECT_EQ(nearest("aaaa", {"aaab", "aaac", "aaad", "aaae"}), (Names{"aaab", "aaac", "aaad"}));
}

TEST(Nearest, ShortNamesDoNotMatchEverything) {
  EXPECT_EQ(nearest("x", {"y", "z"}), Names{});
  EXPECT_EQ(nearest("", {"y"}), Names{});
  EXPECT_EQ(nearest("anything", {}), Names{});
}

}  // namespace
}  // namespace refrain
