// The server over real sockets: what it answers, and what it survives.
#include "scheduler/http/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <string_view>
#include <vector>

#include "core/philox.h"

namespace saesweep::scheduler {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;
using namespace std::chrono_literals;

// A blocking client that says exactly what it is told to.
class Client {
 public:
  explicit Client(std::uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    timeval patience{.tv_sec = 20, .tv_usec = 0};  // a hung server fails the test, not the run
    ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    connected_ = ::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~Client() { ::close(socket_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool connected() const { return connected_; }
  // False once the server has closed the connection.
  bool send(std::string_view bytes) {
    return ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(bytes.size());
  }
  // Bytes, or the end of the connection.
  bool has_news_within(std::chrono::milliseconds patience) {
    pollfd watched{.fd = socket_, .events = POLLIN, .revents = 0};
    return ::poll(&watched, 1, static_cast<int>(patience.count())) != 0;
  }
  // Until the server ends the connection.
  std::string receive_all() {
    std::string all;
    while (receive_some(all)) continue;
    return all;
  }
  std::string receive_until(std::string_view end) {
    std::string all;
    while (!all.ends_with(end) && receive_some(all)) continue;
    return all;
  }

 private:
  bool receive_some(std::string& all) {
    char buffer[4096];
    const ssize_t got = ::recv(socket_, buffer, sizeof buffer, 0);
    if (got > 0) all.append(buffer, static_cast<std::size_t>(got));
    return got > 0;
  }

  int socket_;
  bool connected_ = false;
};

std::string get(std::uint16_t port, const std::string& target) {
  Client client(port);
  client.send("GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  return client.receive_all();
}

struct HttpServerTest : testing::Test {
  static HttpServer start(HttpOptions options = {}) {
    return HttpServer::start(std::move(options), metrics_handler([] { return "up 1\n"; })).value();
  }
  static bool is_alive(const HttpServer& server) {
    return get(server.port(), "/metrics").starts_with("HTTP/1.1 200 OK");
  }
};

TEST_F(HttpServerTest, MetricsAreServedAsPrometheusText) {
  const HttpServer server = start();
  const std::string answer = get(server.port(), "/metrics");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nup 1\n"));
}

TEST_F(HttpServerTest, OtherPathsAreNotFound) {
  const HttpServer server = start();
  for (const char* path : {"/", "/metric", "/metrics/", "/../metrics", "/%6detrics"})
    EXPECT_THAT(get(server.port(), path), StartsWith("HTTP/1.1 404 Not Found\r\n")) << path;
  EXPECT_THAT(get(server.port(), "/metrics?name=up"), StartsWith("HTTP/1.1 200"));
}

TEST_F(HttpServerTest, OtherMethodsAreRefusedAndHeadHasNoBody) {
  const HttpServer server = start();
  Client client(server.port());
  client.send("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
  const std::string refused = client.receive_until("only GET and HEAD\n");
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(refused, HasSubstr("Allow: GET, HEAD\r\n"));
  client.send("HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string head = client.receive_all();
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200 OK"));
  EXPECT_THAT(head, HasSubstr("Content-Length: 5\r\n"));
  EXPECT_THAT(head, EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerTest, AConnectionCarriesManyRequests) {
  const HttpServer server = start();
  Client client(server.port());
  for (int i = 0; i < 50; ++i) {
    ASSERT_TRUE(client.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"));
    ASSERT_THAT(client.receive_until("up 1\n"), StartsWith("HTTP/1.1 200 OK"));
  }
  // Sent ahead of the answers.
  client.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET /no HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(client.receive_until("try /metrics\n"), HasSubstr("HTTP/1.1 404"));
}

TEST_F(HttpServerTest, GarbageIsAnsweredWith400AndTheServerLives) {
  const HttpServer server = start();
  {
    Client client(server.port());
    client.send("\x16\x03\x01\x02 this is no HTTP\r\n\r\n");
    EXPECT_THAT(client.receive_all(), StartsWith("HTTP/1.1 400"));
  }
  for (std::uint64_t seed = 0; seed < 64; ++seed) {
    Rng rng(seed, "test.garbage");
    std::string bytes(rng.below(3000), '\0');
    for (char& byte : bytes) byte = static_cast<char>(rng.below(256));
    Client client(server.port());
    client.send(bytes);
    // Half of them vanish without waiting for an answer.
    if (seed % 2 == 0) client.send("\r\n\r\n");
  }
  EXPECT_TRUE(is_alive(server));
}

TEST_F(HttpServerTest, AHeaderOrBodyOverTheLimitIsRefused) {
  const HttpServer server = start({.max_header_bytes = 1024, .max_body_bytes = 1024});
  Client header(server.port());
  header.send("GET /metrics HTTP/1.1\r\nX: " + std::string(5000, 'a') + "\r\n\r\n");
  EXPECT_THAT(header.receive_all(), StartsWith("HTTP/1.1 431"));
  Client body(server.port());
  body.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\nabc");
  EXPECT_THAT(body.receive_all(), StartsWith("HTTP/1.1 413"));
  EXPECT_TRUE(is_alive(server));
}

TEST_F(HttpServerTest, AClientThatNeverFinishesItsRequestIsCutOff) {
  const HttpServer server = start({.timeout = 50ms});
  Client silent(server.port());
  Client half(server.port());
  half.send("GET /metrics HTT");
  EXPECT_EQ(silent.receive_all(), "");  // ends, although the client waits
  EXPECT_EQ(half.receive_all(), "");
}

TEST_F(HttpServerTest, AClientThatDripsBytesGainsNoTime) {
  const HttpServer server = start({.timeout = 50ms});
  Client client(server.port());
  // A header without end, a line at a time. The deadline is one for the whole request, so the
  // server ends the connection long before the header limit is reached.
  client.send("GET /metrics HTTP/1.1\r\n");
  int lines = 0;
  while (lines < 1000 && !client.has_news_within(10ms) && client.send("X: y\r\n")) ++lines;
  EXPECT_LT(lines, 1000);
  EXPECT_EQ(client.receive_all(), "");
}

TEST_F(HttpServerTest, AClientThatDoesNotReadDoesNotHoldTheOthers) {
  std::atomic<int> asked = 0;
  const HttpServer server = HttpServer::start({.timeout = 5s}, [&](const HttpRequest& request) {
                              ++asked;
                              const bool large = request.path == "/large";
                              return HttpResponse{.body = std::string(large ? 64 << 20 : 2, 'x')};
                            }).value();
  Client lazy(server.port());
  lazy.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n");  // 64 MiB that nobody reads
  EXPECT_THAT(get(server.port(), "/small"), EndsWith("\r\n\r\nxx"));
  EXPECT_EQ(asked, 2);
}

TEST_F(HttpServerTest, ConnectionsOverTheLimitAreClosedAndRoomComesBack) {
  const HttpServer server = start({.max_connections = 2});
  {
    Client first(server.port());
    Client second(server.port());
    for (Client* client : {&first, &second}) {
      client->send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
      ASSERT_THAT(client->receive_until("up 1\n"), StartsWith("HTTP/1.1 200"));
    }
    Client third(server.port());
    third.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_EQ(third.receive_all(), "");
  }
  // The server notices the ends of the first two in its own time.
  bool alive = false;
  for (int attempt = 0; attempt < 1000 && !alive; ++attempt) alive = is_alive(server);
  EXPECT_TRUE(alive);
}

TEST_F(HttpServerTest, ATakenPortAndAWrongAddressAreErrors) {
  const HttpServer server = start();
  const auto second =
      HttpServer::start({.port = server.port()}, metrics_handler([] { return ""; }));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(second.error().message, HasSubstr(std::to_string(server.port())));
  const auto wrong =
      HttpServer::start({.address = "localhost:1"}, metrics_handler([] { return ""; }));
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, ErrorCode::kInvalidArgument);
}

TEST_F(HttpServerTest, StoppingEndsConnectionsAndFreesThePort) {
  HttpServer server = start();
  const std::uint16_t port = server.port();
  EXPECT_EQ(server.url(), "http://127.0.0.1:" + std::to_string(port));
  Client open(port);
  open.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
  ASSERT_THAT(open.receive_until("up 1\n"), StartsWith("HTTP/1.1 200"));
  server.stop();
  server.stop();
  EXPECT_EQ(open.receive_all(), "");
  EXPECT_FALSE(Client(port).connected());
  EXPECT_TRUE(is_alive(start({.port = port})));
}

}  // namespace
}  // namespace saesweep::scheduler
