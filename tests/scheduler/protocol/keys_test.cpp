#include "scheduler/protocol/keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace saesweep::protocol {
namespace {

using testing::HasSubstr;
using testing::Not;

// The test vector of rfc.zeromq.org/spec/32, four times: 32 bytes.
constexpr std::string_view kHello = "HelloWorldHelloWorldHelloWorldHelloWorld";

std::string error_of(const auto& result) { return result ? "no error" : result.error().message; }

KeyPair pair() { return make_key_pair().value(); }

Access access() {
  Access access;
  access.name = "gpu-7";
  access.role = Role::kWorker;
  access.host = "10.0.0.7";
  access.port = 7077;
  access.server = pair().public_key;
  access.keys = pair();
  return access;
}

TEST(Z85, SaysTheVectorOfItsSpecification) {
  const PublicKey key = parse_public_key(kHello).value();
  for (std::size_t i = 0; i < kKeyBytes; i += 8) {
    const std::array<std::uint8_t, 8> expected{0x86, 0x4f, 0xd2, 0x6f, 0xb5, 0x59, 0xf7, 0x5b};
    for (std::size_t j = 0; j < 8; ++j) EXPECT_EQ(key[i + j], expected[j]);
  }
  EXPECT_EQ(z85(key), kHello);
}

TEST(Z85, RefusesWhatSaysNo32Bytes) {
  const std::string hello(kHello);
  EXPECT_FALSE(parse_public_key(""));
  EXPECT_FALSE(parse_public_key(hello.substr(1)));
  EXPECT_FALSE(parse_public_key(hello + "x"));
  EXPECT_FALSE(parse_public_key(" " + hello.substr(1))) << "outside the alphabet";
  EXPECT_FALSE(parse_public_key("#####" + hello.substr(5))) << "more than 32 bits";
  EXPECT_TRUE(parse_public_key("%nSc0" + hello.substr(5))) << "2^32 - 1";
  EXPECT_FALSE(parse_public_key("%nSc1" + hello.substr(5))) << "2^32";
}

TEST(Keys, AreMadeDifferent) {
  const KeyPair one = pair(), other = pair();
  EXPECT_NE(one.public_key, other.public_key);
  EXPECT_NE(one.secret_key.text(), other.secret_key.text());
  EXPECT_EQ(one.secret_key.bytes().size(), kKeyBytes);
}

TEST(Keys, AreComparedWhole) {
  const PublicKey key = pair().public_key;
  for (std::size_t i = 0; i < kKeyBytes; ++i) {
    PublicKey other = key;
    other[i] ^= 1;
    EXPECT_FALSE(equal_in_constant_time(key, other)) << i;
  }
  EXPECT_TRUE(equal_in_constant_time(key, key));
}

TEST(SecretBytes, ShrinkZeroesTheTail) {
  SecretBytes secret(4);
  for (std::uint8_t& byte : secret.bytes()) byte = 'x';
  const std::uint8_t* start = secret.bytes().data();
  secret.shrink(2);
  EXPECT_EQ(secret.text(), "xx");
  EXPECT_EQ(start[2], 0);
  EXPECT_EQ(start[3], 0);
}

TEST(SecretBytes, MoveLeavesNothingBehind) {
  SecretBytes one(3);
  for (std::uint8_t& byte : one.bytes()) byte = 'x';
  const SecretBytes other = std::move(one);
  EXPECT_EQ(other.text(), "xxx");
  EXPECT_TRUE(one.bytes().empty());  // NOLINT(bugprone-use-after-move): what is promised
}

TEST(KeyTexts, ReadAsTheyWereWritten) {
  const KeyPair keys = pair();
  const KeyPair keys_again = parse_key_pair(key_pair_text(keys).text()).value();
  EXPECT_EQ(keys_again.public_key, keys.public_key);
  EXPECT_EQ(keys_again.secret_key.text(), keys.secret_key.text());

  const ServerFile server{keys.public_key, {"login.example.org", 1, 65'535}};
  const ServerFile server_again = parse_server_file(server_file_text(server)).value();
  EXPECT_EQ(server_again.public_key, server.public_key);
  EXPECT_EQ(server_again.address.host, "login.example.org");
  EXPECT_EQ(server_again.address.worker_port, 1);
  EXPECT_EQ(server_again.address.client_port, 65'535);

  for (const Role role : {Role::kWorker, Role::kClient, Role::kAdmin}) {
    const AuthorizedKey key{"w", keys.public_key, role, 1'800'000'000};
    const AuthorizedKey again = parse_authorized(authorized_text(key), "w").value();
    EXPECT_EQ(again.public_key, key.public_key);
    EXPECT_EQ(again.role, role);
    EXPECT_EQ(again.expires, key.expires);

    Access given = access();
    given.role = role;
    const Access access_again = parse_access(access_text(given).text()).value();
    EXPECT_EQ(access_again.name, "gpu-7");
    EXPECT_EQ(access_again.role, role);
    EXPECT_EQ(access_again.endpoint(), "tcp://10.0.0.7:7077");
    EXPECT_EQ(access_again.server, given.server);
    EXPECT_EQ(access_again.keys.public_key, given.keys.public_key);
    EXPECT_EQ(access_again.keys.secret_key.text(), given.keys.secret_key.text());
  }
}

TEST(KeyTexts, SayWhatIsWrongAndNeverAValue) {
  const std::string secret = "topsecret";
  EXPECT_THAT(error_of(parse_key_pair(fmt::format("public={}\nsecret={}\n", kHello, secret))),
              HasSubstr("secret= is no key"));
  EXPECT_THAT(error_of(parse_key_pair(fmt::format("public={}\nsecret={}\n", kHello, secret))),
              Not(HasSubstr(secret)));
  EXPECT_THAT(
      error_of(parse_key_pair(fmt::format("\n# x\nsecert={}\n", secret))),
      testing::AllOf(HasSubstr("line 3"), HasSubstr("public=, secret="), Not(HasSubstr(secret))));
  EXPECT_THAT(error_of(parse_key_pair(fmt::format("public={0}\npublic={0}\n", kHello))),
              HasSubstr("line 2: public= stands here twice"));
  EXPECT_THAT(error_of(parse_key_pair(fmt::format("public={}\n", kHello))),
              HasSubstr("secret= is missing"));
  EXPECT_THAT(error_of(parse_authorized(fmt::format("public={}\nrole=root\n", kHello), "w")),
              HasSubstr("worker, client or admin"));
  EXPECT_THAT(error_of(parse_authorized(fmt::format("public={}\nrole=local\n", kHello), "w")),
              HasSubstr("worker, client or admin"));
  EXPECT_THAT(error_of(parse_authorized(
                  fmt::format("public={}\nrole=worker\nexpires=soon\n", kHello), "w")),
              HasSubstr("2027-01-31"));
  EXPECT_THAT(error_of(parse_access("access=2\n")), HasSubstr("another version"));
  EXPECT_THAT(error_of(parse_access(std::string(kMaxKeyFileBytes + 1, '\n'))),
              HasSubstr("4097 bytes"));
}

TEST(KeyTexts, AWorkersAccessNamesNoClientPort) {
  const SecretBytes text = access_text(access());
  EXPECT_THAT(std::string(text.text()), HasSubstr("worker_port=7077"));
  EXPECT_THAT(std::string(text.text()), Not(HasSubstr("client_port")));
}

TEST(Access, WritesIpv6AddressesInBrackets) {
  Access six = access();
  six.host = "::1";
  EXPECT_EQ(six.endpoint(), "tcp://[::1]:7077");
}

TEST(Expiry, IsADayOrASecond) {
  EXPECT_EQ(parse_expiry("1970-01-02").value(), 86'400);
  EXPECT_EQ(parse_expiry("2027-01-31T12:00:01Z").value(), 1'801'396'801);
  EXPECT_EQ(expiry_text(1'801'396'801), "2027-01-31T12:00:01Z");
  for (const char* wrong :
       {"", "2027", "2027-02-30", "2027-13-01", "2027-01-31T25:00:00Z", "2027-01-31 12:00:00Z",
        "2027-01-31T12:00:00", "0000-00-00", "1960-01-01"})
    EXPECT_FALSE(parse_expiry(wrong)) << wrong;
}

TEST(Names, AreShortAndPlain) {
  EXPECT_TRUE(is_name("gpu-7.lab_A"));
  EXPECT_TRUE(is_name(std::string(128, 'a')));
  for (const std::string& wrong :
       {std::string(), std::string(129, 'a'), std::string(".."), std::string("a/b"),
        std::string("a b"), std::string("-x"), std::string("w\n")})
    EXPECT_FALSE(is_name(wrong)) << wrong;
}

}  // namespace
}  // namespace saesweep::protocol
