#include "worker/tensor_bytes.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace saesweep::worker {
namespace {

TEST(TensorBytes, TensorsComeBackWithTheirDtypeAndBytes) {
  const std::map<std::string, at::Tensor> tensors = {
      {"f32", at::randn({3, 5})},
      {"f64", at::randn({2}, at::kDouble)},
      {"bf16", at::randn({4, 4}).to(at::kBFloat16)},
      {"i64", at::arange(7)},
      {"u8", at::arange(9).to(at::kByte).view({3, 3})},
      {"scalar", at::full({}, 2.5)},
      {"empty", at::empty({0, 4})}};
  const std::string bytes = serialize_tensors(tensors, {{"step", "12"}});
  EXPECT_EQ(bytes, serialize_tensors(tensors, {{"step", "12"}}));
  const auto file = storage::Safetensors::parse(bytes).value();
  EXPECT_EQ(file.metadata().at("step"), "12");
  ASSERT_EQ(file.tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor read = to_tensor(*file.find(name), name).value();
    EXPECT_EQ(read.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(read, tensor)) << name;
  }
}

TEST(TensorBytes, FloatsOfAnyWidthAreReadAsFp32AndNothingElse) {
  const std::map<std::string, at::Tensor> tensors = {
      {"f32", at::randn({3})}, {"bf16", at::randn({3}).to(at::kBFloat16)}, {"i64", at::arange(3)}};
  const auto file = storage::Safetensors::parse(serialize_tensors(tensors)).value();
  for (const char* name : {"f32", "bf16"})
    EXPECT_TRUE(at::equal(to_float_tensor(*file.find(name), name).value(),
                          tensors.at(name).to(at::kFloat)));
  const auto integers = to_float_tensor(*file.find("i64"), "i64");
  ASSERT_FALSE(integers);
  EXPECT_EQ(integers.error().code, ErrorCode::kInvalidArgument);
  EXPECT_THAT(integers.error().message, testing::HasSubstr("\"i64\" is I64"));
}

TEST(TensorBytes, WhatIsReadIsACopy) {
  const at::Tensor original = at::ones({4});
  at::Tensor read;
  {
    const auto file = storage::Safetensors::parse(serialize_tensors({{"a", original}})).value();
    read = to_tensor(*file.find("a"), "a").value();
  }
  EXPECT_TRUE(at::equal(read, original)) << "after the file is gone";
}

}  // namespace
}  // namespace saesweep::worker
