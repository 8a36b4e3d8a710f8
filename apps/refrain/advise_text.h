#pragma once

#include <string>
#include <vector>

#include "models/zoo.h"
#include "refrain/bytes.h"
#include "refrain/largest_batch.h"

/// What `refrain advise` says of what it measured.
namespace refrain::cli {

/// What was asked.
struct Situation {
  const models::TrainableModel& model;
  int64_t batch, timed_batch;  ///< timed_batch: of the overheads
  Bytes limit, fixed;          ///< fixed: parameters, buffers, gradients and optimizer state
  std::string optimizer;
};

/// @param all  "none" first.
std::vector<std::string> reasons_for(const Situation& now, const std::vector<Alternative>& all,
                                     const Alternative& choice);

/// A `refrain train` that does it.
std::string command_for(const Situation& now, const Alternative& choice);

/// C++ for a model of one's own.
std::string code_for(const models::TrainableModel& model, const std::string& strategy);

std::string indented(const std::string& lines);

}  // namespace refrain::cli
