#pragma once

#include <string>
#include <vector>

#include "apps/refrain/commands.h"
#include "apps/refrain/json_file.h"
#include "models/zoo.h"
#include "refrain/amp.h"
#include "refrain/bytes.h"

namespace refrain::cli {

/// Sets the thread count, then builds the model.
std::unique_ptr<models::TrainableModel> build_model(const ModelArgs& args);

/// All of the model's strategies for "all", else just this one, checked; a budget too.
std::vector<std::string> choose_strategies(models::TrainableModel& model, const std::string& strategy);

/// @param kind  adam, adamw, or sgd with momentum 0.9.  @param lr  0: 0.001, for sgd 0.01.
std::unique_ptr<torch::optim::Optimizer> make_optimizer(const std::string& kind, double lr, torch::nn::Module& module);

/// In all groups of parameters, whatever their optimizer.
void set_learning_rate(torch::optim::Optimizer& optimizer, double value);
void set_weight_decay(torch::optim::Optimizer& optimizer, double value);

/// Scales the loss of a model whose forward is in float16; for the others it does nothing.
GradScaler make_scaler(const models::TrainableModel& model, GradScalerOptions options = {});

void drop_gradients(torch::nn::Module& module);

/// By how many resident bytes the process grows while it lives, with all that is free given back at its beginning.
class ResidentWatch {
 public:
  ResidentWatch();
  Bytes growth() const;

 private:
  Bytes start_;
};

/// The default CPU generator's state, and back.
torch::Tensor generator_state();
void set_generator_state(const torch::Tensor& state);

/// Name of a model, and autocast if it has any: "gpt", "gpt with bf16 autocast".
std::string title(const models::TrainableModel& model);

/// Resolved sizes of a model, those it does not have left out.
Json config_json(const models::TrainableModel& model);

/// Of the whole machine, 0 if unknown.
Bytes machine_memory();

/// Processor, cores, threads, versions.
Json machine_json();

/// The members that every document of docs/design/report.md begins with. @param model  its name.
Json document_json(const std::string& kind, const std::string& model, const Json& config);

double median(std::vector<double> values);
/// Half the distance between the quartiles.
double spread(std::vector<double> values);

}  // namespace refrain::cli
