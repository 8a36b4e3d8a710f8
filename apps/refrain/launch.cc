#include "apps/refrain/launch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <optional>
#include <system_error>
#include <thread>

#include "apps/refrain/commands.h"
#include "base/free_port.h"
#include "refrain/error.h"

namespace refrain::cli {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr milliseconds kOthersMayEndToo{200};  ///< to see who else ended by itself, and so who was first to blame
constexpr milliseconds kMayCleanUp{5000};      ///< between SIGTERM and SIGKILL
constexpr size_t kLastLines = 20, kLongestLine = 8192;

[[noreturn]] void fail(const std::string& step, int error) {
  throw EnvironmentError(fmt::format("launch: {} failed: {}", step, std::generic_category().message(error)));
}

/// Both ends, closed on exec.
struct Pipe {
  int from = -1, to = -1;
  Pipe() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) fail("making a pipe", errno);
    from = ends[0];
    to = ends[1];
  }
};

/// What a rank writes to one of its streams, by lines.
class Stream {
 public:
  Stream(int fd, FILE* target, std::string prefix) : fd_(fd), target_(target), prefix_(std::move(prefix)) {
    fcntl(fd, F_SETFL, O_NONBLOCK);
  }
  int fd() const { return fd_; }
  const std::deque<std::string>& last_lines() const { return last_; }

  /// Passes on what is there. Closes the stream at its end.
  void read() {
    char buffer[65536];
    for (ssize_t n; fd_ >= 0;) {
      n = ::read(fd_, buffer, sizeof(buffer));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) break;
      if (n == 0) {
        ::close(fd_);
        fd_ = -1;
      }
      take({buffer, static_cast<size_t>(n)});
    }
    if (target_) std::fflush(target_);
  }
  /// With the line that has no end yet.
  void finish() {
    read();
    if (!partial_.empty()) end_line();
    if (target_) std::fflush(target_);
  }

 private:
  void take(std::string_view text) {
    for (const char c : text) {
      if (c != '\n') partial_ += c;
      if (c == '\n' || partial_.size() >= kLongestLine) end_line();
    }
  }
  void end_line() {
    if (target_) fmt::print(target_, "{}{}\n", prefix_, partial_);
    last_.push_back(std::move(partial_));
    partial_.clear();
    if (last_.size() > kLastLines) last_.pop_front();
  }

  int fd_;
  FILE* target_;
  std::string prefix_, partial_;
  std::deque<std::string> last_;
};

struct Rank {
  pid_t pid;
  Stream out, err;
  std::optional<int> status = std::nullopt;  ///< as by waitpid
  bool stopped = false;                      ///< ended only after we had asked it to

  bool failed() const { return status && *status != 0 && !stopped; }
  bool lost_another() const { return WIFEXITED(*status) && WEXITSTATUS(*status) == kLostRank; }
};

class Launcher {
 public:
  explicit Launcher(const Job& job) : job_(job), port_(job.port > 0 ? job.port : free_port()) {
    sigemptyset(&watched_);
    for (const int signal : {SIGCHLD, SIGINT, SIGTERM, SIGHUP}) sigaddset(&watched_, signal);
    if (sigprocmask(SIG_BLOCK, &watched_, &before_) != 0) fail("blocking signals", errno);
    signals_ = signalfd(-1, &watched_, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals_ < 0) fail("watching signals", errno);
  }
  ~Launcher() {
    end_all(SIGKILL);
    close(signals_);
    sigprocmask(SIG_SETMASK, &before_, nullptr);
  }
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  int run() {
    for (int rank = 0; rank < job_.ranks; ++rank) start(rank);
    while (running() > 0) {
      wait();
      take_signals();
      for (auto& rank : ranks_) reap(rank);
      stop_if_due();
    }
    for (auto& rank : ranks_) {
      rank.out.finish();
      rank.err.finish();
    }
    return conclude();
  }

 private:
  void start(int number) {
    Pipe out, err, failure;
    std::fflush(nullptr);
    const pid_t parent = getpid(), pid = fork();
    if (pid < 0) fail("starting a process", errno);
    if (pid == 0) become(number, parent, out.to, err.to, failure.to);
    setpgid(pid, pid);  // here too, as a signal may be sent before it does so
    for (const int end : {out.to, err.to, failure.to}) close(end);
    const bool all = job_.echo == Echo::kAll;
    const std::string prefix = all ? fmt::format("[{}] ", number) : "";
    ranks_.push_back({pid, Stream(out.from, all || number == 0 ? stdout : nullptr, prefix),
                      Stream(err.from, all ? stderr : nullptr, prefix)});
    int error = 0;
    const bool started = ::read(failure.from, &error, sizeof(error)) != sizeof(error);
    close(failure.from);
    if (started) return;
    throw InvalidArgument(
        fmt::format("launch '{}': cannot be started: {}; expected a program and its arguments after --",
                    job_.command[0], std::generic_category().message(error)));
  }

  /// In the new process. Only this thread is there.
  [[noreturn]] void become(int number, pid_t parent, int out, int err, int failure) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    setpgid(0, 0);
    sigprocmask(SIG_SETMASK, &before_, nullptr);
    const int nothing = open("/dev/null", O_RDONLY);
    dup2(nothing, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    for (const char* theirs : {"TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"}) unsetenv(theirs);
    const auto set = [](const char* name, const std::string& value) { setenv(name, value.c_str(), 1); };
    const auto rank = std::to_string(number), count = std::to_string(job_.ranks);
    set("RANK", rank);
    set("LOCAL_RANK", rank);
    set("WORLD_SIZE", count);
    set("LOCAL_WORLD_SIZE", count);
    set("MASTER_ADDR", "127.0.0.1");
    set("MASTER_PORT", std::to_string(port_));
    const auto threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / job_.ranks);
    setenv("OMP_NUM_THREADS", std::to_string(threads).c_str(), 0);
    std::vector<char*> arguments;
    for (const auto& argument : job_.command) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    const int error = errno;
    _exit(write(failure, &error, sizeof(error)) == sizeof(error) ? 127 : 126);
  }

  ptrdiff_t running() const {
    return std::count_if(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return !rank.status; });
  }

  /// Until something happens or is due.
  void wait() {
    std::vector<pollfd> watched{{signals_, POLLIN, 0}};
    for (const auto& rank : ranks_) {
      for (const auto* stream : {&rank.out, &rank.err}) {
        if (stream->fd() >= 0) watched.push_back({stream->fd(), POLLIN, 0});
      }
    }
    int timeout = -1;
    if (due_) {
      const auto left = std::chrono::duration_cast<milliseconds>(*due_ - Clock::now()).count();
      timeout = static_cast<int>(std::max<int64_t>(left, 0)) + 1;
    }
    poll(watched.data(), watched.size(), timeout);
    for (auto& rank : ranks_) {
      rank.out.read();
      rank.err.read();
    }
  }

  void take_signals() {
    signalfd_siginfo info;
    while (::read(signals_, &info, sizeof(info)) == sizeof(info)) {
      if (info.ssi_signo == SIGCHLD) continue;
      if (interrupted_by_ == 0) interrupted_by_ = static_cast<int>(info.ssi_signo);
      stop();
    }
  }

  void reap(Rank& rank) {
    if (rank.status) return;
    siginfo_t info{};
    if (waitid(P_PID, static_cast<id_t>(rank.pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid == 0) return;
    kill(-rank.pid, SIGKILL);  // what it started and left; before its number can be another's
    int status = 0;
    waitpid(rank.pid, &status, 0);
    rank.status = status;
    rank.stopped = stopping_;
    if (rank.failed() && !due_) due_ = Clock::now() + kOthersMayEndToo;
  }

  void end_all(int signal) {
    for (const auto& rank : ranks_) {
      if (!rank.status) kill(-rank.pid, signal);
    }
  }

  void stop() {
    if (stopping_) return;
    stopping_ = true;
    due_ = Clock::now() + kMayCleanUp;
    end_all(SIGTERM);
  }

  void stop_if_due() {
    if (!due_ || Clock::now() < *due_) return;
    if (!stopping_) {
      stop();
    } else {
      end_all(SIGKILL);
      due_ = Clock::now() + kMayCleanUp;
    }
  }

  /// The rank whose end was not the consequence of another's; null if all ended well.
  const Rank* culprit() const {
    const Rank* found = nullptr;
    const auto weight = [](const Rank& rank) { return WIFSIGNALED(*rank.status) ? 2 : rank.lost_another() ? 0 : 1; };
    for (const auto& rank : ranks_) {
      if (rank.failed() && (!found || weight(rank) > weight(*found))) found = &rank;
    }
    return found;
  }

  int conclude() const {
    const Rank* const failed = culprit();
    const bool all = job_.echo == Echo::kAll;
    const auto& lines = (failed ? *failed : ranks_[0]).err.last_lines();
    const auto number = failed ? failed - ranks_.data() : 0;
    if (interrupted_by_ != 0) {
      fmt::print(stderr, "refrain: stopped by signal {} ({})\n", interrupted_by_, strsignal(interrupted_by_));
      return 128 + interrupted_by_;
    }
    if (all && failed && !lines.empty()) fmt::print(stderr, "Last lines of rank {}:\n", number);
    if (!all || failed) {
      for (const auto& line : lines) fmt::print(stderr, "{}{}\n", all ? "  " : "", line);
    }
    if (!failed) return kOk;
    const bool said_why = !lines.empty() && lines.back().starts_with("refrain: ");
    const int status = *failed->status;
    if (WIFSIGNALED(status)) {
      const int signal = WTERMSIG(status);
      fmt::print(stderr, "refrain: rank {} of {} was killed by signal {} ({}); the others were stopped\n", number,
                 job_.ranks, signal, strsignal(signal));
      return 128 + signal;
    }
    if (all || !said_why) {
      fmt::print(stderr, "refrain: rank {} of {} exited with code {}; the others were stopped\n", number, job_.ranks,
                 WEXITSTATUS(status));
    }
    return WEXITSTATUS(status);
  }

  const Job& job_;
  const int port_;
  sigset_t watched_{}, before_{};
  int signals_ = -1, interrupted_by_ = 0;
  std::vector<Rank> ranks_;
  bool stopping_ = false;
  std::optional<Clock::time_point> due_;  ///< when to begin to stop, or to end those that are left
};

}  // namespace

int launch(const Job& job) { return Launcher(job).run(); }

int run_launch(const LaunchArgs& args) {
  return launch({.ranks = args.ranks, .command = args.command, .port = args.port, .echo = Echo::kAll});
}

}  // namespace refrain::cli
