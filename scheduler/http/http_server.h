// A small HTTP/1.1 server for the pages a scheduler shows: one io thread, whole answers, no files.
//
// It listens on the loopback address and answers GET and HEAD; anything else is 405, garbage is
// 400, and what exceeds a limit is refused or cut off, so a careless or hostile client costs at
// most one connection's memory for one timeout. TLS and tokens are a proxy's work.
//
// The handler runs on the io thread: it must be quick and touch only what is safe to share.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "core/result.h"

namespace saesweep::scheduler {

struct HttpRequest {
  std::string path;   // of the target, before '?', as sent (not decoded): "/metrics"
  std::string query;  // after '?', or empty
};

struct HttpResponse {
  unsigned status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

struct HttpOptions {
  std::string address = "127.0.0.1";
  std::uint16_t port = 0;  // 0: a free one, see HttpServer::port()
  std::uint32_t max_header_bytes = 16 << 10;
  std::uint64_t max_body_bytes = 64 << 10;  // bodies are read past and ignored
  // Time for a whole request, for a whole answer, and for the pause between two requests.
  std::chrono::milliseconds timeout{10'000};
  std::size_t max_connections = 256;  // further ones are closed at once
};

class HttpServer {
 public:
  // Listens from here on.
  // Errors: kInvalidArgument for an address that is none; kUnavailable if the port is taken.
  static Result<HttpServer> start(HttpOptions options, HttpHandler handler);
  HttpServer(HttpServer&&) noexcept;
  HttpServer& operator=(HttpServer&&) noexcept;
  ~HttpServer();  // stops

  std::uint16_t port() const;
  std::string url() const;  // "http://127.0.0.1:9464"

  // Closes all connections and ends the thread; the handler is not called again. Twice is once.
  void stop();

 private:
  struct State;  // keeps Boost.Beast out of every file that includes this one
  explicit HttpServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Answers GET /metrics with expose()'s page in Prometheus' text format, all else with 404.
HttpHandler metrics_handler(std::function<std::string()> expose);

}  // namespace saesweep::scheduler
