// A process that is killed while it offloads: nothing of it is left on the disk, and training goes on from its own
// state.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/atomic_file.h"
#include "refrain/refrain.h"

namespace refrain_test {
namespace {
namespace fs = std::filesystem;

constexpr int kSteps = 60;

/// Momentum SGD whose whole state is in `path` after each step.
class SavedTraining {
 public:
  SavedTraining(fs::path folder, bool offloads) : folder_(std::move(folder)), offloads_(offloads) {
    at::set_num_threads(1);
    torch::manual_seed(4);
    for (int i = 0; i < 6; ++i) state_.push_back((i < 3 ? torch::randn({128, 128}) * 0.1 : torch::zeros({128, 128})));
    if (fs::exists(path())) load();
  }

  int done() const { return done_; }

  /// @returns the loss's bits.
  int32_t step() {
    const auto options = refrain::CheckpointOptions().policy(refrain::offload_compute_intensive()).offload(store_);
    std::vector<torch::Tensor> w;
    for (int i = 0; i < 3; ++i) w.push_back(state_[i].detach().requires_grad_());
    torch::manual_seed(done_);
    const auto input = torch::randn({64, 128});
    const auto fn = [&] {
      auto h = input;
      for (const auto& weight : w) h = torch::dropout(h.mm(weight).tanh(), 0.1, true);
      return h.pow(2).mean();
    };
    auto loss = offloads_ ? refrain::checkpoint(options, fn) : fn();
    loss.backward();
    for (int i = 0; i < 3; ++i) {
      state_[3 + i] = state_[3 + i] * 0.9 + w[i].grad();
      state_[i] = state_[i] - 0.5 * state_[3 + i];
    }
    ++done_;
    save();
    const float value = loss.item<float>();
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
  }

 private:
  fs::path path() const { return folder_ / "state"; }
  void save() const {
    std::ostringstream out;
    torch::save(state_, out);
    refrain::write_file_atomically(path(), std::to_string(done_) + "\n" + out.str());
  }
  void load() {
    std::ifstream in(path(), std::ios::binary);
    in >> done_;
    in.get();
    std::stringstream rest;
    rest << in.rdbuf();
    state_.clear();  // it appends
    torch::load(state_, rest);
  }

  const fs::path folder_;
  const bool offloads_;
  const refrain::OffloadStore store_{
      refrain::OffloadOptions().store(refrain::OffloadTo::kDisk).directory(folder_).min_bytes(0).max_in_flight(0)};
  int done_ = 0;
  std::vector<torch::Tensor> state_;
};

/// Runs `body` in a child process. LibTorch has no threads yet, so that forking is allowed.
template <typename Body>
pid_t fork_child(const Body& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    body();
    ::_exit(0);
  }
  return child;
}

void append(const fs::path& path, const std::string& line) { std::ofstream(path, std::ios::app) << line << std::endl; }

std::vector<std::string> lines(const fs::path& path) {
  std::ifstream in(path);
  std::vector<std::string> all;
  for (std::string line; std::getline(in, line);) all.push_back(line);
  return all;
}

TEST(Killed, TrainingGoesOnToTheBitAndTheDiskIsFree) {
  const auto folder = fs::temp_directory_path() / ("refrain-kill-" + std::to_string(::getpid()));
  const auto train = [](const fs::path& where, bool offloads) {
    fs::create_directories(where);
    SavedTraining run(where, offloads);
    while (run.done() < kSteps) {
      const int number = run.done();
      append(where / "losses", std::to_string(number) + " " + std::to_string(run.step()));
    }
  };
  const auto plain = folder / "plain", mine = folder / "mine";
  int status = 0;
  ::waitpid(fork_child([&] { train(plain, false); }), &status, 0);
  ASSERT_EQ(status, 0);

  for (const size_t steps : {5, 20, 35}) {
    const pid_t child = fork_child([&] { train(mine, true); });
    while (lines(mine / "losses").size() < steps) ::usleep(200);
    ::usleep(static_cast<useconds_t>(60 * steps));  // somewhere in a step
    ::kill(child, SIGKILL);
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "it ended before it was killed";
    for (const auto& entry : fs::directory_iterator(mine)) {
      const auto name = entry.path().filename().string();
      EXPECT_TRUE(name == "losses" || name == "state" || name.starts_with(".refrain-")) << name << " was left behind";
    }
  }
  ::waitpid(fork_child([&] { train(mine, true); }), &status, 0);
  ASSERT_EQ(status, 0);
  const auto want = lines(plain / "losses");
  ASSERT_EQ(want.size(), static_cast<size_t>(kSteps));
  // a step that was killed between its state and its line says nothing; one that says something says the same
  for (const auto& line : lines(mine / "losses"))
    EXPECT_NE(std::find(want.begin(), want.end(), line), want.end()) << line;
  EXPECT_EQ(lines(mine / "losses").back(), want.back());
  fs::remove_all(folder);
}

}  // namespace
}  // namespace refrain_test
