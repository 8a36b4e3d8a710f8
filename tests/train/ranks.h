#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/free_port.h"
#include "refrain/refrain.h"

/// Runs a function as the ranks of a job: real processes, forked from a test that has not used LibTorch yet, which meet
/// over loopback. Expectations in a rank count as the test's.
namespace refrain_test {

using namespace std::chrono_literals;

/// How a rank ended.
struct Ended {
  int exit_code = -1;  ///< 0: well; 1: an expectation failed; 2: it threw
  int signal = 0;
  std::string error;  ///< what it threw
  std::chrono::milliseconds after{0};
};

namespace detail {

inline void run_rank(int rank, int report, const std::function<void(int)>& body) {
  int code = 0;
  try {
    body(rank);
    code = testing::Test::HasFailure() ? 1 : 0;
  } catch (const std::exception& error) {
    const std::string text = error.what();
    code = write(report, text.data(), text.size()) < 0 ? 1 : 2;
  }
  std::fflush(nullptr);
  _exit(code);
}

inline std::string read_all(int fd) {
  std::string text;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) text.append(buffer, static_cast<size_t>(n));
  close(fd);
  return text;
}

}  // namespace detail

/// Runs `body(rank)` in `count` processes and waits for all. One that hangs for `limit` is killed and fails the test.
inline std::vector<Ended> run_processes(int count, const std::function<void(int)>& body,
                                        std::chrono::seconds limit = 60s) {
  std::vector<Ended> ended(static_cast<size_t>(count));
  std::vector<pid_t> pids;
  std::vector<int> reports;
  const auto begin = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - begin);
  };
  std::fflush(nullptr);
  for (int rank = 0; rank < count; ++rank) {
    int ends[2];
    if (pipe(ends) != 0) throw std::runtime_error("no pipe");
    const pid_t pid = fork();
    if (pid == 0) detail::run_rank(rank, ends[1], body);
    close(ends[1]);
    pids.push_back(pid);
    reports.push_back(ends[0]);
  }
  for (size_t running = pids.size(); running > 0;) {
    std::this_thread::sleep_for(2ms);
    if (elapsed() > limit) {
      ADD_FAILURE() << running << " ranks hang after " << limit.count() << " s";
      for (const pid_t pid : pids) {
        if (pid > 0) kill(pid, SIGKILL);
      }
    }
    for (size_t i = 0; i < pids.size(); ++i) {
      int status = 0;
      if (pids[i] <= 0 || waitpid(pids[i], &status, WNOHANG) != pids[i]) continue;
      ended[i] = {WIFEXITED(status) ? WEXITSTATUS(status) : -1, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
                  detail::read_all(reports[i]), elapsed()};
      pids[i] = -1;
      --running;
    }
  }
  return ended;
}

/// Options of one rank of a job of `size` at `port`; short timeouts.
inline refrain::ProcessGroupOptions rank_options(int rank, int size, int port) {
  auto options = refrain::ProcessGroupOptions().rank(rank).world_size(size).master_port(port);
  return options.rendezvous_timeout(20s).timeout(20s);
}

/// Runs `body` in `count` ranks, in one group. The test fails unless all end well.
inline void run_ranks(int count, const std::function<void(const refrain::ProcessGroup&)>& body) {
  const int port = refrain::free_port();
  const auto ended =
      run_processes(count, [&](int rank) { body(refrain::init_process_group(rank_options(rank, count, port))); });
  for (size_t rank = 0; rank < ended.size(); ++rank) {
    const auto& end = ended[rank];
    EXPECT_EQ(end.exit_code, 0) << "rank " << rank << ", signal " << end.signal << ": " << end.error;
  }
}

/// The message of the exception of type `E` that `fn` throws.
template <typename E>
std::string message_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

inline void expect_has(const std::string& text, const std::vector<std::string>& parts) {
  for (const auto& part : parts) EXPECT_NE(text.find(part), std::string::npos) << '"' << part << "\" in: " << text;
}

}  // namespace refrain_test
