// Rows of layers cut into segments, and the arithmetic of the cuts.
#include "tests/tape/support.h"

namespace refrain_test {
namespace {

using refrain::InvalidArgument;
using refrain::Segment;
using refrain::Segments;
using Sequential = TapeTest;

std::vector<Segment> pieces(std::initializer_list<Segment> list) { return list; }

TEST_F(Sequential, EvenAsTorchCutsIt) {
  EXPECT_EQ(Segments(2).split(4), pieces({{0, 2, true}, {2, 4, false}}));
  EXPECT_EQ(Segments(3).split(8), pieces({{0, 2, true}, {2, 4, true}, {4, 8, false}}));
  EXPECT_EQ(Segments(1).split(3), pieces({{0, 3, false}}));
  EXPECT_EQ(Segments(2).checkpoint_last(true).split(5), pieces({{0, 2, true}, {2, 5, true}}));
  EXPECT_EQ(Segments(4).split(4).size(), 4U);
}

TEST_F(Sequential, OtherCuts) {
  EXPECT_EQ(Segments::sizes({1, 3}).split(4), pieces({{0, 1, true}, {1, 4, false}}));
  EXPECT_EQ(Segments::uniform(3).split(7), pieces({{0, 3, true}, {3, 6, true}, {6, 7, true}}));
  EXPECT_EQ(Segments::block(2).split(5), pieces({{0, 1, true}, {1, 2, true}, {2, 5, false}}));
  EXPECT_EQ(Segments::block(2).split(2), pieces({{0, 1, true}, {1, 2, true}}));
  EXPECT_EQ(Segments::every_nth(1).split(2), pieces({{0, 1, true}, {1, 2, true}}));
  EXPECT_EQ(Segments::every_nth(2).split(5),
            pieces({{0, 1, false}, {1, 2, true}, {2, 3, false}, {3, 4, true}, {4, 5, false}}));
  EXPECT_TRUE(Segments(3).split(0).empty());
}

TEST_F(Sequential, EveryCutCoversEachLayerOnce) {
  for (int64_t layers = 1; layers <= 20; ++layers) {
    for (int64_t n = 1; n <= layers; ++n) {
      for (const auto& cut : {Segments(n), Segments::uniform(n), Segments::block(n), Segments::every_nth(n)}) {
        int64_t at = 0;
        for (const auto& piece : cut.split(layers)) {
          EXPECT_EQ(piece.begin, at);
          EXPECT_GT(piece.end, piece.begin);
          at = piece.end;
        }
        EXPECT_EQ(at, layers);
      }
    }
  }
}

TEST_F(Sequential, WrongCutsSayWhatWasFound) {
  for (const auto& cut :
       {Segments(0), Segments(5), Segments(-1), Segments::uniform(0), Segments::block(5), Segments::every_nth(0),
        Segments::sizes({2, 1}), Segments::sizes({5, -1}), Segments::sizes({})})
    EXPECT_THROW((void)cut.split(4), InvalidArgument);
  const auto text = message_of<InvalidArgument>([] { (void)Segments(7).split(4); });
  EXPECT_NE(text.find("7"), std::string::npos) << text;
  EXPECT_NE(text.find("1 to 4"), std::string::npos) << text;
}

TEST_F(Sequential, SuggestionHasTheLeastPeakAndIsNearTheSquareRoot) {
  EXPECT_EQ(refrain::suggest_segments(0), 1);
  EXPECT_EQ(refrain::suggest_segments(1), 1);
  EXPECT_EQ(refrain::suggest_segments(16), 4);
  EXPECT_EQ(refrain::suggest_segments(80), 8);
  EXPECT_EQ(refrain::suggest_segments(100), 10);
  for (int64_t n = 1; n <= 400; ++n) {
    // boundaries, and the inside of the longest segment
    const auto peak = [&](int64_t s) {
      int64_t longest = 0;
      for (const auto& piece : Segments(s).split(n)) longest = std::max(longest, piece.end - piece.begin);
      return s - 1 + longest;
    };
    const auto suggested = refrain::suggest_segments(n);
    for (int64_t s = 1; s <= n; ++s) EXPECT_LE(peak(suggested), peak(s)) << n << ", " << s;
    EXPECT_LE(std::abs(static_cast<double>(suggested) - std::sqrt(n)), 0.5 * std::sqrt(n) + 1) << n;
  }
  EXPECT_THROW((void)refrain::suggest_segments(-1), InvalidArgument);
}

torch::nn::Sequential layers(int64_t n) {
  torch::manual_seed(3);
  torch::nn::Sequential seq;
  for (int64_t i = 0; i < n; ++i) {
    seq->push_back(torch::nn::Linear(8, 8));
    if (i % 2 == 0)
      seq->push_back(torch::nn::GELU());
    else
      seq->push_back(torch::nn::Dropout(0.2));
  }
  return seq;
}

TEST_F(Sequential, SameResultsInEveryCut) {
  for (const auto& cut :
       {Segments(1), Segments(3), Segments(12), Segments(4).checkpoint_last(true), Segments::uniform(5),
        Segments::block(4), Segments::every_nth(3), Segments::sizes({2, 7, 3})}) {
    expect_same([&](Trial& run) {
      auto seq = layers(6);
      torch::manual_seed(9);
      Tensor x = run.param({4, 8});
      // one recorded operator at least, also where the cut leaves everything plain
      Tensor start = run.region([&] { return x.exp(); });
      Tensor y = run.recorded() ? refrain::checkpoint_sequential(seq, cut, start) : seq->forward(start);
      y.pow(2).sum().backward();
      for (const auto& p : seq->parameters()) run.note("parameter", p.grad());
      return Tensor();
    });
  }
}

TEST_F(Sequential, AnythingThatCanBeCalled) {
  const auto seq = layers(2);
  const Tensor x = torch::rand({4, 8});
  const auto expect = [&](Tensor y) { expect_bit_equal(torch::gelu(x).tanh(), y); };
  std::vector<std::function<Tensor(Tensor)>> functions{[](Tensor t) { return torch::gelu(t); },
                                                       [](Tensor t) { return t.tanh(); }};
  expect(refrain::checkpoint_sequential(functions, 2, x));
  std::vector<torch::nn::AnyModule> any{torch::nn::AnyModule(torch::nn::GELU()),
                                        torch::nn::AnyModule(torch::nn::Tanh())};
  expect(refrain::checkpoint_sequential(any, Segments::uniform(1), x));
  std::vector<torch::nn::Linear> holders{torch::nn::Linear(8, 8), torch::nn::Linear(8, 8)};
  expect_bit_equal(holders[1]->forward(holders[0]->forward(x)), refrain::checkpoint_sequential(holders, 2, x));
  std::vector<std::shared_ptr<torch::nn::LinearImpl>> pointers{holders[0].ptr(), holders[1].ptr()};
  expect_bit_equal(holders[1]->forward(holders[0]->forward(x)), refrain::checkpoint_sequential(pointers, 2, x));
}

TEST_F(Sequential, ForwardKeepsOnlyTheBoundaries) {
  constexpr int64_t kFloats = 1 << 14;
  std::vector<std::function<Tensor(Tensor)>> layers(16, [](Tensor t) { return t.sin(); });
  Tensor x = torch::rand({kFloats}, torch::requires_grad());
  refrain::MemoryScope memory;
  Tensor y = refrain::checkpoint_sequential(layers, Segments(4).checkpoint_last(true), x);
  EXPECT_EQ(memory.current(), 4 * kFloats * 4) << "four segments: three boundaries and the result";
  y.sum().backward();
}

TEST_F(Sequential, OptionsReachTheRegions) {
  std::vector<std::function<Tensor(Tensor)>> layers(4, [](Tensor t) { return t.sin(); });
  Tensor x = torch::rand({8}, torch::requires_grad());
  const auto options = refrain::CheckpointOptions().policy(refrain::everything_saveable());
  const int64_t before = refrain::tape_stats().replayed_ops;
  refrain::checkpoint_sequential(layers, Segments::uniform(2), x, options).sum().backward();
  EXPECT_EQ(refrain::tape_stats().replayed_ops, before);
}

}  // namespace
}  // namespace refrain_test
