#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <new>
#include <string>

#include "apps/refrain/commands.h"
#include "apps/refrain/failures.h"
#include "apps/refrain/options.h"
#include "base/suggest.h"
#include "refrain/largest_batch.h"
#include "refrain/torch_error.h"
#include "refrain/version.h"

namespace {

using refrain::is_out_of_memory;
using refrain::cli::allocation_failure_cause;
using refrain::cli::ExitCode;
using refrain::cli::first_line;
using refrain::cli::one_line;

constexpr const char* kFooter =
    "Exit codes:\n"
    "  0  done\n"
    "  1  verify, compare: not bit-equal\n"
    "  2  bad input: nothing was run, nothing was written\n"
    "  3  out of memory: a limit or the machine's memory was reached, --save was not written; plan: no plan fits\n"
    "  4  anything else\n"
    "  5  another rank is missing, exited or timed out\n"
    "  launch, train --ranks: the code of the rank that failed first; 128 + n if signal n killed it";

/// One line on standard error.
int fail(ExitCode code, const std::string& message) {
  fmt::print(stderr, "refrain: {}\n", one_line(message));
  return code;
}

void check_command_name(const CLI::App& app, int argc, char** argv) {
  if (argc < 2 || argv[1][0] == '-') return;
  std::vector<std::string> names;
  for (const auto* command : app.get_subcommands({})) names.push_back(command->get_name());
  if (std::find(names.begin(), names.end(), argv[1]) != names.end()) return;
  const auto near = refrain::nearest(argv[1], names);
  throw refrain::InvalidArgument(fmt::format("unknown command '{}': expected one of {}{}; see 'refrain --help'",
                                             argv[1], fmt::join(names, ", "),
                                             near.empty() ? "" : "; did you mean " + near.front() + "?"));
}

int run(int argc, char** argv) {
  CLI::App app("Train LibTorch models in less memory, bit-equal to the baseline.", "refrain");
  app.set_version_flag("--version", std::string("refrain ") + REFRAIN_VERSION);
  app.footer(kFooter);
  app.require_subcommand(1);
  refrain::cli::Commands commands(app, {argv, argv + argc});
  check_command_name(app, argc, argv);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return fail(ExitCode::kBadInput, refrain::cli::explain(app, error));
  }
  return commands.dispatch();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const refrain::InvalidArgument& error) {
    return fail(ExitCode::kBadInput, error.what());
  } catch (const refrain::FormatError& error) {
    return fail(ExitCode::kBadInput, error.what());
  } catch (const refrain::DistributedError& error) {
    return fail(ExitCode::kLostRank, error.what());
  } catch (const c10::Error& error) {
    if (is_out_of_memory(error)) {
      return fail(ExitCode::kOutOfMemory,
                  "out of memory: " + allocation_failure_cause(error) + "; choose smaller sizes or another strategy");
    }
    return fail(ExitCode::kInternal, first_line(error.msg()));
  } catch (const std::bad_alloc&) {
    return fail(ExitCode::kOutOfMemory, "out of memory: the system refused an allocation; choose smaller sizes");
  } catch (const std::exception& error) {
    return fail(ExitCode::kInternal, first_line(error.what()));
  }
}
