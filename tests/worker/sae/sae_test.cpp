#include "worker/sae/sae.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "core/files.h"
#include "tests/support/temp_dir.h"
#include "worker/tensor_bytes.h"

namespace saesweep::worker {
namespace {

using saesweep::test::TempDir;

// Two inputs, three latents: e1, e2 and their sum.
Sae small(Sae::Selection selection) {
  Sae sae;
  sae.name = "standard";
  sae.selection = selection;
  sae.k = 1;
  sae.w_enc = at::tensor({1.0F, 0.0F, 0.0F, 1.0F, 0.5F, 0.5F}).view({3, 2});
  sae.b_enc = at::tensor({0.0F, 0.0F, -0.25F});
  sae.w_dec = at::tensor({1.0F, 0.0F, 0.0F, 1.0F, 1.0F, 1.0F}).view({3, 2});
  sae.b_dec = at::tensor({1.0F, -1.0F});
  return sae;
}

std::vector<float> values(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.contiguous();
  return {flat.const_data_ptr<float>(), flat.const_data_ptr<float>() + flat.numel()};
}

using Floats = std::vector<float>;

TEST(Sae, EncodesByItsSelection) {
  const at::Tensor x = at::tensor({3.0F, 0.0F, 0.0F, -3.0F}).view({2, 2});  // centred: 2 1, -1 -2
  EXPECT_EQ(values(small(Sae::Selection::kRelu).encode(x)), (Floats{2, 1, 1.25, 0, 0, 0}));
  EXPECT_EQ(values(small(Sae::Selection::kTopK).encode(x)), (Floats{2, 0, 0, 0, 0, 0}));
  EXPECT_EQ(values(small(Sae::Selection::kLinear).encode(x)), (Floats{2, 1, 1.25, -1, -2, -1.75}));
  EXPECT_EQ(values(small(Sae::Selection::kIdentity).encode(x)), values(x));
  EXPECT_EQ(values(small(Sae::Selection::kIdentity).decode(x)), values(x));
  Sae threshold = small(Sae::Selection::kThreshold);
  threshold.threshold = at::tensor({2.0F, 0.5F, -1.0F});
  // 2 is not above 2; a threshold below 0 lets nothing negative through.
  EXPECT_EQ(values(threshold.encode(x)), (Floats{0, 1, 1.25, 0, 0, 0}));
  Sae raw = small(Sae::Selection::kRelu);
  raw.apply_b_dec_to_input = false;
  EXPECT_EQ(values(raw.encode(x)), (Floats{3, 0, 1.25, 0, 0, 0}));
}

// The gate decides by z + b_gate, the magnitude says exp(r_mag) z + b_mag.
TEST(Sae, SaysWhatTheMagnitudeSaysWhereTheGateIsOpen) {
  Sae sae = small(Sae::Selection::kGated);
  sae.b_enc.reset();
  sae.r_mag = at::tensor({std::log(2.0F), 0.0F, 0.0F});
  sae.b_gate = at::tensor({0.0F, -1.0F, 5.0F});
  sae.b_mag = at::tensor({0.5F, 0.0F, -2.0F});
  // z: 2, 1, 1.5 and -1, -2, -1.5. 1 - 1 opens no gate; an open gate lets nothing negative through.
  const at::Tensor x = at::tensor({3.0F, 0.0F, 0.0F, -3.0F}).view({2, 2});
  const Floats got = values(sae.encode(x)), want = {4.5, 0, 0, 0, 0, 0};
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-6) << i;

  TempDir folder;
  const auto path = folder.path() / "sae.safetensors";
  ASSERT_TRUE(write_file_atomically(path, serialize_sae(sae)));
  for (const char* name : {"gated", "gated_p_anneal"}) {
    const auto read = load_sae(path, {{"architecture", name}});
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(read->selection, Sae::Selection::kGated);
    EXPECT_FALSE(read->b_enc.defined());
    EXPECT_EQ(values(read->encode(x)), got);
  }
  EXPECT_NE(load_sae(path, {{"architecture", "standard"}}).error().message.find("b_enc"),
            std::string::npos);
}

TEST(Sae, GivesTiesToTheLowestLatent) {
  Sae sae = small(Sae::Selection::kTopK);
  sae.w_enc.zero_();
  sae.b_enc.fill_(0.5);
  sae.k = 2;
  EXPECT_EQ(values(sae.encode(at::zeros({1, 2}))), (Floats{0.5, 0.5, 0}));
}

TEST(Sae, DecodesRowsOfTheDecoderAndTheBias) {
  const Sae sae = small(Sae::Selection::kRelu);
  EXPECT_EQ(values(sae.decode(at::tensor({2.0F, 1.0F, 0.5F}).view({1, 3}))), (Floats{3.5, 0.5}));
}

// The same rows one by one and all together.
TEST(Sae, EncodesEachRowByItself) {
  Sae sae = small(Sae::Selection::kTopK);
  sae.k = 2;
  const at::Tensor x = at::randn({64, 2}, at::TensorOptions().dtype(at::kFloat));
  const at::Tensor together = sae.encode(x);
  for (std::int64_t row = 0; row < 64; ++row) {
    const at::Tensor alone = sae.encode(x.narrow(0, row, 1))[0];
    EXPECT_TRUE(at::allclose(alone, together[row], 1e-6, 1e-7));
  }
}

Json config_of(const std::string& architecture) {
  return {
      {"architecture", architecture}, {"parameters", {{"k", 2}}}, {"apply_b_dec_to_input", true}};
}

TEST(SaeFile, ReadsBackWhatWasWritten) {
  TempDir folder;
  const auto path = folder.path() / "sae.safetensors";
  Sae sae = small(Sae::Selection::kThreshold);
  sae.threshold = at::tensor({0.1F, 0.2F, 0.3F});
  ASSERT_TRUE(write_file_atomically(path, serialize_sae(sae)));
  const auto batchtopk = load_sae(path, config_of("batchtopk"));
  ASSERT_TRUE(batchtopk) << batchtopk.error().message;
  EXPECT_EQ(batchtopk->selection, Sae::Selection::kThreshold);
  EXPECT_EQ(values(batchtopk->w_enc), values(sae.w_enc));
  EXPECT_EQ(values(batchtopk->threshold), values(sae.threshold));
  EXPECT_EQ(serialize_sae(*batchtopk), serialize_sae(sae));

  ASSERT_TRUE(write_file_atomically(path, serialize_sae(small(Sae::Selection::kRelu))));
  EXPECT_EQ(load_sae(path, config_of("standard"))->selection, Sae::Selection::kRelu);
  const auto topk = load_sae(path, config_of("topk"));
  ASSERT_TRUE(topk);
  EXPECT_EQ(topk->selection, Sae::Selection::kTopK);
  EXPECT_EQ(topk->k, 2);
  EXPECT_EQ(topk->d_in(), 2);
  EXPECT_EQ(topk->d_sae(), 3);
}

std::string message(const std::map<std::string, at::Tensor>& tensors, const Json& config) {
  TempDir folder;
  const auto path = folder.path() / "sae.safetensors";
  EXPECT_TRUE(write_file_atomically(path, serialize_tensors(tensors)));
  const auto loaded = load_sae(path, config);
  EXPECT_FALSE(loaded);
  if (loaded) return "";
  EXPECT_EQ(loaded.error().code, ErrorCode::kInvalidArgument);
  return loaded.error().message;
}

TEST(SaeFile, SaysWhatIsWrongWithIt) {
  const Sae sae = small(Sae::Selection::kRelu);
  const std::map<std::string, at::Tensor> good = {
      {"W_enc", sae.w_enc}, {"b_enc", sae.b_enc}, {"W_dec", sae.w_dec}, {"b_dec", sae.b_dec}};
  for (const auto& [name, tensor] : good) {
    auto bad = good;
    bad.erase(name);
    EXPECT_NE(message(bad, config_of("standard")).find(name), std::string::npos);
    bad = good;
    bad[name] = tensor.clone();
    bad[name].view({-1})[1] = INFINITY;
    EXPECT_NE(message(bad, config_of("standard")).find(name), std::string::npos);
    if (name == "W_enc") continue;
    bad[name] = at::zeros({7});
    EXPECT_NE(message(bad, config_of("standard")).find(name), std::string::npos);
  }
  auto bad = good;
  bad["W_enc"] = at::zeros({6});
  EXPECT_NE(message(bad, config_of("standard")).find("W_enc"), std::string::npos);
  bad = good;
  bad["threshold"] = at::zeros({2});
  EXPECT_NE(message(bad, config_of("batchtopk")).find("threshold"), std::string::npos);
  EXPECT_NE(message(good, config_of("batchtopk")).find("threshold"), std::string::npos);
  EXPECT_NE(message(good, config_of("jumprelu")).find("threshold"), std::string::npos);
  EXPECT_NE(message(good, config_of("gated")).find("r_mag"), std::string::npos);
  EXPECT_NE(message(good, Json::object()).find("architecture"), std::string::npos);
  EXPECT_NE(message(good, {{"architecture", "topk"}}).find("parameters.k"), std::string::npos);
  EXPECT_NE(
      message(good, {{"architecture", "topk"}, {"parameters", {{"k", 4}}}}).find("parameters.k"),
      std::string::npos);

  TempDir folder;
  EXPECT_EQ(load_sae(folder.path() / "none", config_of("topk")).error().code, ErrorCode::kNotFound);
  std::ofstream(folder.path() / "junk") << "junk";
  EXPECT_EQ(load_sae(folder.path() / "junk", config_of("topk")).error().code,
            ErrorCode::kCorrupted);
}

}  // namespace
}  // namespace saesweep::worker
