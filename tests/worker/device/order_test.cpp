// A kernel leaves the same bytes in whatever order its blocks and their threads come, and whether
// these have locals of their own or not. That they are the right ones is seen by kernels_test.cpp
// and device_trainers_test.cpp.
#include <set>
#include <string>

#include "core/philox.h"
#include "tests/worker/device/kernels.h"

namespace saesweep::worker::device {
namespace {

using emulation::Order;

// Sizes that divide nothing, of more than one block of columns.
constexpr std::int64_t kRows = 6, kWidth = 300, kLatents = 290, kCodes = 11;
// Of what has a block each.
constexpr std::int64_t kSome = 9;

class AnyOrder : public Kernels {
 protected:
  // `launch` asks for kernels on memory of its own.
  template <class Launch>
  void expect_same(const Launch& launch) {
    const auto left_by = [&](bool has_threads, Order order) {
      emulate(has_threads, order);
      rng_ = Rng(1, "test.kernels");
      outputs_.clear();
      launch();
      std::string left;
      for (const auto& [memory, bytes] : outputs_) {
        std::string one(bytes, ' ');
        EXPECT_TRUE(device_->download(one.data(), memory, bytes));
        left += one;
      }
      return left;
    };
    const std::string expected = left_by(false, Order::kForwards);
    EXPECT_FALSE(expected.empty());
    for (const Order order : {Order::kForwards, Order::kBackwards, Order::kShuffled}) {
      EXPECT_TRUE(left_by(true, order) == expected) << static_cast<int>(order);
      if (emulation::kWatchesRaces) break;  // which are seen in any order, slowly
    }
  }

  template <class Kernel>
  void launch(const Kernel& kernel, std::int64_t blocks) {
    const auto launched = device_->launch(kernel, blocks);
    EXPECT_TRUE(launched) << launched.error().message;
  }

  std::vector<float> normal(std::int64_t count) {
    std::vector<float> values;
    while (std::ssize(values) < count) values.push_back(static_cast<float>(rng_.normal()));
    return values;
  }
  float* floats(std::int64_t count) { return put(normal(count)); }
  double* doubles(std::int64_t count) {
    const auto values = normal(count);
    return put(std::vector<double>(values.begin(), values.end()));
  }
  // At least 0, and 0 now and then.
  float* activations(std::int64_t count) {
    auto values = normal(count);
    for (float& value : values) value = std::max(value, 0.0F);
    return put(values);
  }
  std::int32_t* counts(std::int64_t count) {
    std::vector<std::int32_t> values;
    for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<std::int32_t>(i % 4));
    return put(values);
  }
  // What is compared.
  template <class T>
  T* out(T* memory, std::int64_t count) {
    outputs_.emplace_back(memory, static_cast<std::size_t>(count) * sizeof(T));
    return memory;
  }
  template <class T>
  T* out(std::int64_t count) {
    return out(zeros<T>(static_cast<std::size_t>(count)), count);
  }
  float* changed(std::int64_t count) { return out(floats(count), count); }
  DenseRows changed_rows() {
    return {changed(kRows * kLatents), out<std::uint16_t>(kRows * kLatents), kLatents};
  }
  const StepTerms* terms(double p = 1, double next_p = -1) {
    StepTerms terms{};
    terms.rates = {0.01F, 0.9F, 0.99F, 1e-8F, 0.1F, 0.01F, 1.5F};
    terms.penalty = 0.25;
    terms.p = p;
    terms.next_p = next_p;
    return put(std::vector<StepTerms>{terms});
  }
  StepSums* sums() {
    StepSums before{};
    before.optimised_error = 3;
    before.applied = 1;
    before.clip = 0.5F;
    return out(put(std::vector<StepSums>{before}), 1);
  }
  Moved moved(std::int64_t count) {
    return {changed(count), floats(count), changed(count), out(activations(count), count)};
  }
  // Some of each row; none of the last.
  CodeLists codes() {
    std::vector<std::int64_t> begin;
    std::vector<std::int32_t> count, latent;
    for (std::int64_t row = 0; row < kRows; ++row) {
      begin.push_back(row * kCodes);
      count.push_back(static_cast<std::int32_t>(row + 1 < kRows ? kCodes - row : 0));
      for (std::int64_t i = 0; i < kCodes; ++i)
        latent.push_back(static_cast<std::int32_t>(i * 20 + row % 3));
    }
    return {put(begin), put(count), put(latent), activations(kRows * kCodes),
            out<float>(kRows * kCodes)};
  }
  std::uint32_t* flag() { return out<std::uint32_t>(1); }
  std::uint8_t* fired() { return out<std::uint8_t>(kLatents); }
  template <class Kernel>
  static std::int64_t blocks(std::int64_t count) {
    return (count + Kernel::kThreads - 1) / Kernel::kThreads;
  }

  Rng rng_{1, "test.kernels"};
  std::vector<std::pair<const void*, std::size_t>> outputs_;
};

TEST_F(AnyOrder, OfRows) {
  expect_same([&] {
    launch(CentreRow{floats(kRows * 400), floats(kWidth), kWidth, 400, out<float>(kRows * kWidth),
                     out<std::uint16_t>(kRows * kWidth)},
           kRows);
    launch(RoundValues{floats(5000), out<std::uint16_t>(5000), 5000}, 2);
    launch(ReluRow{changed_rows(), floats(kLatents), out<std::int32_t>(kRows), fired(), flag()},
           kRows);
    launch(ErrorRow{changed_rows(), floats(kLatents), floats(kRows * kWidth), kWidth, 0.1F,
                    out<double>(kRows)},
           kRows);
    launch(PullRow{changed_rows(), activations(kRows * kLatents), floats(kLatents)}, kRows);
    for (const bool takes_root : {false, true})
      launch(BendRow{changed_rows(), activations(kRows * kLatents), terms(0.8, 0.7), 0.2,
                     takes_root, out<double>(kRows), out<double>(kRows)},
             kRows);
    launch(GatedRow{changed_rows(), changed_rows(), floats(kLatents), floats(kLatents),
                    floats(kLatents), out<std::int32_t>(kRows), fired(), flag()},
           kRows);
    launch(JumpRow{changed(kRows * kLatents), changed_rows(), floats(kLatents), floats(kLatents),
                   out<std::int32_t>(kRows), fired(), flag()},
           kRows);
    launch(SquareRow{floats(kRows * 400), kWidth, 400, out<double>(kRows)}, kRows);
  });
}

TEST_F(AnyOrder, OfLatents) {
  expect_same([&] {
    for (const std::int64_t parts : {0, 1, 3})
      launch(WeighLatent{floats(kSome * kWidth), kWidth, parts, terms(), 0.2, out<float>(kSome),
                         out<float>(kSome * 3), out<float>(kSome)},
             kSome);
    launch(PullNorm{floats(kSome * kWidth), activations(kSome * 3), doubles(kSome), kWidth, 3,
                    terms(), 0.2, changed(kSome * kWidth)},
           kSome);
    launch(PullJumpNorm{floats(kSome * kWidth), activations(kSome),
                        doubles(JumpColumns::kSums * kSome), kSome, kWidth, terms(), 0.1, 0.2,
                        changed(kSome * kWidth)},
           kSome);
    for (const bool projects : {false, true})
      launch(GradeLatent{floats(kSome * kWidth), changed(kSome * kWidth), floats(kSome * 77),
                         floats(kSome), 77, kWidth, projects, 1e-6, out<double>(kSome)},
             kSome);
    for (const bool normalises : {false, true})
      launch(MoveLatent{moved(kSome * 77), moved(kSome), moved(kSome * kWidth), 77, kWidth, terms(),
                        normalises, 1e-7, sums()},
             kSome);
    launch(MoveVector{moved(kLatents), kLatents, terms(), sums()}, blocks<MoveVector>(kLatents));
    std::vector<std::int64_t> silence;
    for (std::int64_t i = 0; i < kLatents; ++i) silence.push_back(i * 7 % 50);
    std::vector<std::uint8_t> active;
    for (std::int64_t i = 0; i < kLatents; ++i) active.push_back(i % 3 == 0 ? 1 : 0);
    launch(AdvanceSilence{put(active), put(silence), out<std::int64_t>(kLatents), kLatents, kRows,
                          25, flag()},
           blocks<AdvanceSilence>(kLatents));
    launch(KeepSilence{out<std::int64_t>(kLatents), put(silence), kLatents, 25, sums()},
           blocks<KeepSilence>(kLatents));
  });
}

TEST_F(AnyOrder, OfColumns) {
  expect_same([&] {
    constexpr std::int64_t kMany = 260;  // more than a block takes
    const std::int64_t tiles = 2 * blocks<SumColumns>(kLatents);
    launch(SumColumns{floats(kMany * kLatents), floats(kMany), kMany, kLatents, kLatents,
                      out<double>(2 * kLatents)},
           tiles);
    launch(FoldColumns{doubles(2 * kLatents), 2, kLatents, out<double>(kLatents)},
           blocks<FoldColumns>(kLatents));
    const auto rows = [&] {
      return DenseRows{changed(kMany * kLatents), out<std::uint16_t>(kMany * kLatents), kLatents};
    };
    launch(GatedColumns{activations(kMany * kLatents), activations(kMany * kLatents),
                        floats(kMany * kLatents), rows(), floats(kLatents), floats(kLatents), kMany,
                        terms(), 0.2, false, out<double>(2 * GatedColumns::kSums * kLatents)},
           tiles);
    for (const bool has_tanh : {false, true})
      launch(JumpColumns{floats(kMany * kLatents), activations(kMany * kLatents), rows(),
                         floats(kLatents), activations(kLatents), kMany, 0.5F, has_tanh, 4.0F,
                         terms(), 0.2, 0.01, out<double>(2 * JumpColumns::kSums * kLatents)},
             tiles);
    launch(GradeBias{doubles(kLatents), doubles(kLatents), kLatents, out<float>(kLatents)},
           blocks<GradeBias>(kLatents));
    launch(Variance{doubles(kLatents), doubles(kMany), kMany, kLatents, out<double>(1)}, 1);
  });
}

TEST_F(AnyOrder, OfABatch) {
  expect_same([&] {
    launch(SetTerms{StepTerms{{}, 2, 3, 4}, out<StepTerms>(1)}, 1);
    launch(ScaleByVariance{doubles(1), 2, out<float>(1)}, 1);
    SumDense dense{};
    dense.rows = kRows;
    dense.latents = kLatents;
    dense.row_squares = doubles(kRows);
    dense.active = counts(kRows);
    dense.f_sums = doubles(kLatents);
    dense.norm = floats(kLatents);
    dense.terms = terms();
    dense.share = 0.2;
    dense.variance = doubles(1);
    dense.sums = sums();
    launch(dense, 1);
    dense.row_bent = doubles(kRows);
    dense.row_next = doubles(kRows);
    dense.row_auxiliary = doubles(kRows);
    dense.sums = sums();
    launch(dense, 1);
    for (const bool over_batch : {false, true}) {
      SumPass pass{};
      pass.rows = kRows;
      pass.row_squares = doubles(kRows);
      pass.row_prefixes = over_batch ? doubles(kRows) : nullptr;
      pass.counts = counts(kRows);
      pass.smallest = activations(kRows);
      pass.over_batch = over_batch;
      pass.variance = doubles(1);
      pass.dead = put(std::vector<std::uint32_t>{3});
      pass.missed_squares = doubles(kRows);
      pass.residual_variance = doubles(1);
      pass.weight = 0.1;
      pass.sums = sums();
      launch(pass, 1);
    }
    const double target = 5;
    for (const auto& [wanted, has_tanh] :
         {std::pair(0.0, false), std::pair(target, false), std::pair(0.0, true)})
      launch(PenaliseJumps{doubles(JumpColumns::kSums * kLatents), floats(kLatents), kLatents,
                           kRows, terms(), wanted, has_tanh, 0.5, doubles(kRows), counts(kRows),
                           doubles(1), out<float>(kLatents), out<float>(kLatents), sums()},
             1);
    launch(JudgeStep{doubles(kLatents), kLatents, kRows, 0.5, sums()}, 1);
  });
}

TEST_F(AnyOrder, OfCodes) {
  expect_same([&] {
    launch(DecodeRow{codes(), floats(kLatents * kWidth), floats(kWidth), floats(kRows * kWidth),
                     floats(kRows * kWidth), kWidth, kWidth, 0.1F, nullptr, nullptr,
                     out<float>(kRows * kWidth), out<float>(kRows * kWidth), out<double>(kRows)},
           kRows);
    // Where there is nothing to revive.
    DecodeRow none{};
    none.codes = codes();
    none.unless_none = zeros<std::uint32_t>(1);
    none.square = out<double>(kRows);
    launch(none, kRows);
    launch(
        DecodePrefixes{codes(), floats(kLatents * kWidth), floats(kWidth), floats(kRows * kWidth),
                       kWidth, 3, put(std::vector<std::int64_t>{50, 120, kLatents}), 0.1F, 0.3,
                       out<float>(kRows * kWidth), out<float>(kRows * 3 * kWidth),
                       out<double>(kRows), out<double>(kRows)},
        kRows);
  });
}

TEST_F(AnyOrder, OfTouches) {
  expect_same([&] {
    const CodeLists lists = codes();
    TouchLists touches{out<std::uint32_t>(kLatents), out<std::int64_t>(kLatents + 1),
                       out<Touch>(kRows * kCodes), kLatents};
    launch(ClearBits{touches, nullptr}, 1);
    launch(SetBits{lists, touches}, kRows);
    launch(CountTouches{touches, 1, nullptr}, blocks<CountTouches>(kLatents));
    launch(PlaceLatents{touches, nullptr}, 1);
    launch(WriteTouches{lists, touches}, kRows);
    for (const bool add : {false, true})
      launch(
          GatherGradients{touches, floats(kRows * 3 * kWidth), floats(kRows * 77), 77, kWidth, 3,
                          put(std::vector<std::int64_t>{50, 120, kLatents}), changed(kLatents * 77),
                          changed(kLatents), changed(kLatents * kWidth), add, nullptr},
          kSome);
  });
}

// Where entries of a row or a batch begin is not of an order's making, nor is what is left unused.
TEST_F(AnyOrder, OfSelections) {
  expect_same([&] {
    const Candidates all{floats(kRows * kLatents), floats(kLatents), kLatents, nullptr, 0};
    const auto kept = [&] {
      return CodeLists{out<std::int64_t>(kRows), out<std::int32_t>(kRows),
                       out<std::int32_t>(kRows * kCodes), out<float>(kRows * kCodes), nullptr};
    };
    launch(SelectRow{all, kCodes, kCodes, nullptr, kept(), out<float>(kRows), fired(), flag()},
           kRows);
    const CodeLists codes = kept();
    auto* cut = out<Cut>(1);
    auto* histogram = out<std::uint32_t>(Radix::kBins);
    auto *above = out<std::uint32_t>(kRows), *equal = out<std::uint32_t>(kRows);
    auto* not_finite = flag();
    launch(BeginCut{cut, histogram, kRows * kCodes}, 1);
    for (std::int32_t look = 0; look < Radix::kLooks; ++look) {
      launch(CountBins{all, kRows, cut, histogram, not_finite, look}, 1);
      launch(NarrowCut{cut, histogram, look}, 1);
    }
    launch(CountKept{all, cut, above, equal}, kRows);
    launch(PlaceRows{kRows, cut, above, equal, codes.begin}, 1);
    launch(WriteKept{all, cut, equal, codes, out<float>(kRows), fired()}, kRows);
  });
}

}  // namespace
}  // namespace saesweep::worker::device
