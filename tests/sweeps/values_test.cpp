#include "sweeps/values.h"

#include <gmock/gmock.h>

#include "sweeps/nearest.h"

namespace saesweep::sweeps {
namespace {

using testing::HasSubstr;

TEST(ValuesTest, CountsTakeThousandsExactly) {
  EXPECT_EQ(parse_count("200").value(), 200u);
  EXPECT_EQ(parse_count("+7").value(), 7u);
  EXPECT_EQ(parse_count("200k").value(), 200'000u);
  EXPECT_EQ(parse_count("1.5M").value(), 1'500'000u);
  EXPECT_EQ(parse_count("2G").value(), 2'000'000'000u);
  EXPECT_EQ(parse_count("1e6").value(), 1'000'000u);
  EXPECT_EQ(parse_count("12.5e3").value(), 12'500u);
  EXPECT_EQ(parse_count("1200e-2").value(), 12u);
  EXPECT_EQ(parse_count("0").value(), 0u);
  EXPECT_EQ(parse_count("0.000001M").value(), 1u);
  EXPECT_EQ(parse_count("9223372036854775807").value(), 9223372036854775807u);
}

TEST(ValuesTest, CountsThatAreNoneAreRefusedWithTheirValue) {
  for (const char* text : {"", "k", "abc", "1 000", "0x10", "1e", "1e+", "1.5.2", "1kk", "nan",
                           "inf", "1e999999999999", "1_000", "5%", "e5", "."})
    EXPECT_THAT(parse_count(text).error().message, HasSubstr("is not a number")) << text;
  EXPECT_THAT(parse_count("-1").error().message, HasSubstr("'-1' is negative"));
  EXPECT_THAT(parse_count("1.5").error().message, HasSubstr("'1.5' is not a whole number"));
  EXPECT_THAT(parse_count("1.0001k").error().message, HasSubstr("is not a whole number"));
  EXPECT_THAT(parse_count("1e-3").error().message, HasSubstr("is not a whole number"));
}

TEST(ValuesTest, NumbersPast64BitsAreRefused) {
  for (const char* text :
       {"9223372036854775808", "18446744073709551616", "99999999999999999999999999", "1e19",
        "1e300", "9223372036854775807k", "10000000000G"})
    EXPECT_THAT(parse_count(text).error().message, HasSubstr("(64 bits)")) << text;
  EXPECT_THAT(parse_size("8388608TiB").error().message, HasSubstr("(64 bits)"));
  EXPECT_EQ(parse_size("8388607TiB").value(), 8388607ull << 40);
}

TEST(ValuesTest, SizesAreBinary) {
  EXPECT_EQ(parse_size("512").value(), 512u);
  EXPECT_EQ(parse_size("1.5KiB").value(), 1536u);
  EXPECT_EQ(parse_size("64MiB").value(), 64u << 20);
  EXPECT_EQ(parse_size("4GiB").value(), std::uint64_t{4} << 30);
  EXPECT_EQ(parse_size("0").value(), 0u);
  for (const char* text : {"4GB", "4g", "4k", "GiB", "-1GiB"})
    EXPECT_FALSE(parse_size(text)) << text;
}

TEST(ValuesTest, TimesAreSecondsMinutesHours) {
  EXPECT_EQ(parse_seconds("60").value(), 60);
  EXPECT_EQ(parse_seconds("60s").value(), 60);
  EXPECT_EQ(parse_seconds("1.5m").value(), 90);
  EXPECT_EQ(parse_seconds("2h").value(), 7200);
  for (const char* text : {"", "s", "-1s", "1d", "1ms", "inf"})
    EXPECT_FALSE(parse_seconds(text)) << text;
}

TEST(ValuesTest, SharesAndReals) {
  EXPECT_EQ(parse_share_percent("5%").value(), 5);
  EXPECT_EQ(parse_share_percent("0.05").value(), 5);
  EXPECT_FALSE(parse_share_percent("-1%"));
  EXPECT_FALSE(parse_share_percent("%"));
  EXPECT_EQ(parse_real("3e-4").value(), 3e-4);
  EXPECT_EQ(parse_real("+0.5").value(), 0.5);
  EXPECT_EQ(parse_real("-2").value(), -2);
  for (const char* text : {"", "1,5", "0.5x", "nan", "inf", "-inf", "1e999", "+-1"})
    EXPECT_FALSE(parse_real(text)) << text;
}

TEST(ValuesTest, StepsAreACountOrAShareOfTheRun) {
  EXPECT_EQ(parse_steps("1000").value().of(50), 1000u);
  EXPECT_EQ(parse_steps("5%").value().of(1953), 97u);
  EXPECT_EQ(parse_steps("100%").value().of(7), 7u);
  EXPECT_EQ(parse_steps("0%").value().of(7), 0u);
  EXPECT_EQ(parse_steps("7%").value().of(100), 7u);  // not 6: 0.07 * 100 is below 7 in doubles
  EXPECT_EQ(parse_steps("2k").value().to_string(), "2000");
  EXPECT_EQ(parse_steps("12.5%").value().to_string(), "12.5%");
  for (const char* text : {"101%", "-5%", "0.5", "x", "%"}) EXPECT_FALSE(parse_steps(text)) << text;
}

TEST(ValuesTest, ShortestTextReadsBackAsTheSameDouble) {
  for (const double value : {0.1, 3e-4, 1.0 / 3, 1e300, 5e-324, 0.0, 12345678.9})
    EXPECT_EQ(parse_real(shortest(value)).value(), value);
  EXPECT_EQ(shortest(0.1), "0.1");
}

TEST(NearestTest, DistanceCountsEditsAndSwaps) {
  EXPECT_EQ(edit_distance("batch", "batch"), 0);
  EXPECT_EQ(edit_distance("bacth", "batch"), 1);
  EXPECT_EQ(edit_distance("batches", "batch"), 2);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance(std::string(1000, 'a'), std::string(1000, 'a')), 0);
}

TEST(NearestTest, OnlyACloseWordIsSuggested) {
  constexpr std::string_view kWords[] = {"batch", "tokens", "k", "d_sae"};
  EXPECT_EQ(nearest_word("token", kWords), "tokens");
  EXPECT_EQ(nearest_word("dsae", kWords), "d_sae");
  EXPECT_EQ(nearest_word("learning_rate", kWords), "");
  EXPECT_THAT(suggestion("token", kWords), HasSubstr("did you mean 'tokens'?"));
  EXPECT_THAT(suggestion("learning_rate", kWords), HasSubstr("one of batch, tokens, k, d_sae"));
}

}  // namespace
}  // namespace saesweep::sweeps
