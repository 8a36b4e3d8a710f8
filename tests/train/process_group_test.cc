#include <cstdlib>
#include <map>

#include "tests/train/ranks.h"

namespace {

using namespace refrain_test;
using refrain::DistributedError;
using refrain::init_process_group;
using refrain::InvalidArgument;
using refrain::ProcessGroup;
using refrain::ProcessGroupOptions;

/// These variables, while it lives.
class Environment {
 public:
  explicit Environment(std::map<std::string, std::string> variables) : variables_(std::move(variables)) {
    for (const auto& [name, value] : variables_) setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() {
    for (const auto& [name, value] : variables_) unsetenv(name.c_str());
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  std::map<std::string, std::string> variables_;
};

ProcessGroupOptions options_of(const std::map<std::string, std::string>& variables) {
  const Environment environment(variables);
  return ProcessGroupOptions::from_environment();
}

TEST(FromEnvironment, ReadsWhatStartersSet) {
  auto options = options_of({{"RANK", "5"},
                             {"WORLD_SIZE", "8"},
                             {"LOCAL_RANK", "1"},
                             {"LOCAL_WORLD_SIZE", "4"},
                             {"MASTER_ADDR", "10.0.0.7"},
                             {"MASTER_PORT", "4711"},
                             {"TORCHELASTIC_USE_AGENT_STORE", "True"}});
  EXPECT_EQ(options.rank(), 5);
  EXPECT_EQ(options.world_size(), 8);
  EXPECT_EQ(options.local_rank(), 1);
  EXPECT_EQ(options.master_addr(), "10.0.0.7");
  EXPECT_EQ(options.master_port(), 4711);
  EXPECT_TRUE(options.launcher_hosts_store());

  options = options_of({{"OMPI_COMM_WORLD_RANK", "3"},
                        {"OMPI_COMM_WORLD_SIZE", "4"},
                        {"OMPI_COMM_WORLD_LOCAL_RANK", "2"},
                        {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}});
  EXPECT_EQ(options.rank(), 3);
  EXPECT_EQ(options.world_size(), 4);
  EXPECT_EQ(options.local_rank(), 2);
  EXPECT_EQ(options.master_addr(), "127.0.0.1");
  EXPECT_EQ(options.master_port(), 29500);
  EXPECT_FALSE(options.launcher_hosts_store());

  options = options_of({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}});
  EXPECT_EQ(options.rank(), 1);
  EXPECT_EQ(options.world_size(), 2);
  EXPECT_EQ(options.local_rank(), 1);
}

TEST(FromEnvironment, IsAWorldOfOneWithoutVariables) {
  const auto options = options_of({{std::string("RANK"), std::string()}});
  EXPECT_EQ(options.rank(), 0);
  EXPECT_EQ(options.world_size(), 1);
}

TEST(FromEnvironment, NamesTheVariableThatIsWrong) {
  const auto refuse = [](const std::map<std::string, std::string>& variables, const std::vector<std::string>& parts) {
    expect_has(message_of<InvalidArgument>([&] { options_of(variables); }), parts);
  };
  refuse({{"RANK", "two"}, {"WORLD_SIZE", "4"}}, {"RANK is 'two'", "0 to 3"});
  refuse({{"RANK", "4"}, {"WORLD_SIZE", "4"}}, {"RANK is '4'", "0 to 3"});
  refuse({{"RANK", "-1"}, {"WORLD_SIZE", "4"}}, {"RANK is '-1'"});
  refuse({{"RANK", "0"}, {"WORLD_SIZE", "0"}}, {"WORLD_SIZE is '0'", "from 1"});
  refuse({{"RANK", "0"}, {"WORLD_SIZE", "99999999999999999999"}}, {"WORLD_SIZE is"});
  refuse({{"RANK", "0"}}, {"RANK is set and WORLD_SIZE is not"});
  refuse({{"WORLD_SIZE", "2"}}, {"WORLD_SIZE is set and RANK is not"});
  refuse({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1x"}}, {"LOCAL_RANK is '1x'"});
  refuse({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "0"}}, {"MASTER_PORT is '0'", "1 to 65535"});
  refuse({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "8"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"}},
         {"4 of 8 ranks", "MASTER_ADDR"});
}

TEST(InitProcessGroup, RefusesOptionsOutOfRange) {
  const auto refuse = [](const ProcessGroupOptions& options, const char* part) {
    expect_has(message_of<InvalidArgument>([&] { init_process_group(options); }), {part});
  };
  refuse(ProcessGroupOptions().world_size(0), "world_size 0");
  refuse(ProcessGroupOptions().world_size(2).rank(2), "rank 2: expected 0 to 1");
  refuse(ProcessGroupOptions().master_port(70000), "master_port 70000");
  refuse(ProcessGroupOptions().master_addr(""), "master_addr");
  refuse(ProcessGroupOptions().timeout(0ms), "timeout 0 s");
  refuse(ProcessGroupOptions().rendezvous_timeout(-1ms), "rendezvous_timeout");
}

void expect_collectives_to_work(const ProcessGroup& group) {
  const auto rank = group.rank(), size = group.size();
  auto sum = torch::full({3}, static_cast<double>(rank + 1), torch::requires_grad());
  group.all_reduce(sum);
  EXPECT_TRUE(torch::equal(sum, torch::full({3}, static_cast<double>(size * (size + 1) / 2))));
  auto from_last = torch::full({2, 2}, rank);
  group.broadcast(from_last, size - 1);
  EXPECT_TRUE(torch::equal(from_last, torch::full({2, 2}, size - 1)));
  const auto all = group.all_gather(torch::full({2}, rank));
  const auto texts = group.all_gather(std::string(static_cast<size_t>(rank), 'x'));
  ASSERT_EQ(all.size(), static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    EXPECT_TRUE(torch::equal(all[static_cast<size_t>(i)], torch::full({2}, i)));
    EXPECT_EQ(texts[static_cast<size_t>(i)], std::string(static_cast<size_t>(i), 'x'));
  }
  group.barrier();
  EXPECT_THROW(group.broadcast(from_last, size), InvalidArgument);
}

TEST(ProcessGroup, Collectives) {
  for (const int size : {1, 2, 4}) run_ranks(size, expect_collectives_to_work);
}

TEST(ProcessGroup, ASecondGroupOfTheSameRanks) {
  const int port = refrain::free_port();
  const auto ended = run_processes(2, [&](int rank) {
    const auto first = init_process_group(rank_options(rank, 2, port));
    const auto second = init_process_group(rank_options(rank, 2, port));
    first.barrier();
    expect_collectives_to_work(second);
  });
  for (const auto& end : ended) EXPECT_EQ(end.exit_code, 0) << end.error;
}

TEST(ProcessGroup, ARankThatStartsLateIsWaitedFor) {
  const int port = refrain::free_port();
  for (const int late : {0, 1}) {
    const auto ended = run_processes(2, [&](int rank) {
      if (rank == late) std::this_thread::sleep_for(1s);
      init_process_group(rank_options(rank, 2, port)).barrier();
    });
    for (const auto& end : ended) EXPECT_EQ(end.exit_code, 0) << end.error;
  }
}

TEST(ProcessGroup, RanksThatDoNotComeAreNamed) {
  const int port = refrain::free_port();
  auto ended = run_processes(4, [&](int rank) {
    if (rank < 2) init_process_group(rank_options(rank, 4, port).rendezvous_timeout(1500ms));
  });
  expect_has(ended[0].error, {"ranks 2, 3 of 4 are missing at 127.0.0.1:", "after 1.5 s"});
  expect_has(ended[1].error, {" of 4 ", "rank"});
  for (const int rank : {0, 1}) EXPECT_LT(ended[static_cast<size_t>(rank)].after, 15s);

  ended = run_processes(2, [&](int rank) {
    if (rank == 1) init_process_group(rank_options(rank, 2, port).rendezvous_timeout(1500ms));
  });
  expect_has(ended[1].error, {"rank 0 of 2 is missing at 127.0.0.1:", "after 1.5 s"});
  EXPECT_LT(ended[1].after, 15s);
}

TEST(ProcessGroup, ARankThatComesTooLateHearsOfIt) {
  const int port = refrain::free_port();
  const auto ended = run_processes(2, [&](int rank) {
    if (rank == 1) std::this_thread::sleep_for(2s);
    init_process_group(rank_options(rank, 2, port).rendezvous_timeout(1s));
  });
  expect_has(ended[0].error, {"rank 1 of 2 is missing", "after 1 s"});
  expect_has(ended[1].error, {"rank 0 of 2 is missing", "after 1 s"});
}

TEST(ProcessGroup, RanksThatDisagree) {
  const int port = refrain::free_port();
  auto ended = run_processes(
      2, [&](int rank) { init_process_group(rank_options(rank, 2 + 2 * rank, port).rendezvous_timeout(3s)); });
  const std::string told = ended[0].error + ended[1].error;
  expect_has(told, {"found world_size", "start all with the same number"});
  ended = run_processes(3, [&](int rank) {
    const auto group = init_process_group(rank_options(rank == 2 ? 1 : rank, 2, port).rendezvous_timeout(3s));
    std::this_thread::sleep_for(1s);  // so that rank 0 still listens when the third comes
  });
  expect_has(ended[1].error + ended[2].error, {"two processes", "rank 1 of 2", "RANK"});
}

TEST(ProcessGroup, APortThatIsTaken) {
  const int port = refrain::free_port();
  const auto ended = run_processes(2, [&](int rank) {  // two jobs of different starters, each of two ranks
    if (rank == 1) std::this_thread::sleep_for(500ms);
    init_process_group(rank_options(0, 2, port).rendezvous_timeout(1500ms));
  });
  expect_has(ended[1].error, {"rank 0 cannot listen at 127.0.0.1:", "choose another MASTER_PORT"});
}

TEST(ProcessGroup, ARankThatEndsOrIsLateFailsTheCollective) {
  const int port = refrain::free_port();
  const auto run = [&](const std::function<void()>& last_rank_does) {
    return run_processes(3, [&](int rank) {
      const auto group = init_process_group(rank_options(rank, 3, port).timeout(2s));
      group.barrier();
      if (rank == 2) last_rank_does();
      group.barrier();
    });
  };
  for (const auto& ended : {run([] { raise(SIGKILL); }), run([] { std::this_thread::sleep_for(6s); })}) {
    for (const size_t rank : {0U, 1U}) {
      expect_has(ended[rank].error, {"[refrain::ProcessGroup] barrier failed on rank " + std::to_string(rank) + " of 3",
                                     "another rank exited or timed out"});
      EXPECT_LT(ended[rank].after, 6s);
    }
  }
}

}  // namespace
