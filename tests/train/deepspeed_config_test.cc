#include <gtest/gtest.h>

#include "refrain/activation_checkpointing.h"
#include "refrain/error.h"

namespace {

using refrain::ActivationCheckpointingOptions;

ActivationCheckpointingOptions read(const std::string& text) {
  return ActivationCheckpointingOptions::from_deepspeed_json(text);
}

std::string refusal(const std::string& text) {
  try {
    read(text);
  } catch (const refrain::FormatError& error) {
    return error.what();
  }
  ADD_FAILURE() << "accepted: " << text;
  return "";
}

void expect_refused(const std::string& text, const std::string& part) {
  const auto message = refusal(text);
  EXPECT_NE(message.find(part), std::string::npos) << message;
}

TEST(DeepSpeedConfig, ReadsEveryKeyOfAWholeConfiguration) {
  const auto options = read(R"({
    "train_batch_size": 8,
    "optimizer": {"type": "Adam"},
    "activation_checkpointing": {
      "partition_activations": true,
      "cpu_checkpointing": true,
      "contiguous_memory_optimization": true,
      "number_checkpoints": 12, // one a layer
      "synchronize_checkpoint_boundary": true,
      "profile": true
    }
  })");
  EXPECT_TRUE(options.partition_activations());
  EXPECT_TRUE(options.cpu_checkpointing());
  EXPECT_TRUE(options.contiguous_memory_optimization());
  EXPECT_EQ(options.number_checkpoints(), 12);
  EXPECT_TRUE(options.synchronize_checkpoint_boundary());
  EXPECT_TRUE(options.profile());
}

TEST(DeepSpeedConfig, ReadsTheSectionAlone) {
  const auto options = read(R"({"cpu_checkpointing": true, "number_checkpoints": null})");
  EXPECT_TRUE(options.cpu_checkpointing());
  EXPECT_FALSE(options.partition_activations());
  EXPECT_FALSE(options.contiguous_memory_optimization());
  EXPECT_FALSE(options.synchronize_checkpoint_boundary());
  EXPECT_FALSE(options.profile());
  EXPECT_EQ(options.number_checkpoints(), 0);
  EXPECT_FALSE(read("{}").cpu_checkpointing());
  EXPECT_FALSE(read(R"({"activation_checkpointing": {"cpu_checkpointing": false}})").cpu_checkpointing());
}

TEST(DeepSpeedConfig, AnUnknownKeyIsAnErrorThatListsTheKnownOnes) {
  expect_refused(R"({"partition_activation": true})",
                 "unknown key `partition_activation` in \"activation_checkpointing\"; did you mean "
                 "`partition_activations`? Known: partition_activations, contiguous_memory_optimization, "
                 "cpu_checkpointing, number_checkpoints, synchronize_checkpoint_boundary, profile.");
  expect_refused(R"({"activation_checkpointing": {"profile": true, "xyzzy": 1}})", "unknown key `xyzzy`");
  expect_refused(R"({"train_batch_size": 8})", "unknown key `train_batch_size`");
}

TEST(DeepSpeedConfig, AValueOfAnotherTypeSaysWhatWasFoundAndExpected) {
  expect_refused(R"({"profile": "yes"})", "profile is \"yes\", expected true or false.");
  expect_refused(R"({"profile": 1})", "profile is 1, expected true or false.");
  expect_refused(R"({"number_checkpoints": 2.5})", "number_checkpoints is 2.5, expected a whole number >= 0 or null.");
  expect_refused(R"({"number_checkpoints": -1})", "number_checkpoints is -1, expected");
  expect_refused(R"({"number_checkpoints": true})", "number_checkpoints is true, expected");
  expect_refused(R"({"number_checkpoints": 18446744073709551615})", "expected a whole number");
  expect_refused(R"({"activation_checkpointing": [1]})", "found [1], expected an object");
  expect_refused("[]", "found [], expected an object");
}

TEST(DeepSpeedConfig, WhatIsNoJsonSaysWhere) {
  expect_refused(R"({"profile": tru})", "not valid JSON at byte 16");
  expect_refused("", "not valid JSON at byte 1");
  expect_refused(R"({"profile": true,})", "not valid JSON");
}

}  // namespace
