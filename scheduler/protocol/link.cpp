#include "scheduler/protocol/link.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/message_lite.h>

#include <algorithm>
#include <random>

#include "core/log.h"
#include "scheduler/protocol/link_socket.h"

namespace saesweep::protocol {
namespace {

constexpr int kRecursionLimit = 16;
// CURVE puts a name, a counter, a flag and a box's overhead around a frame
// (rfc.zeromq.org/spec/26): 8 + 8 + 1 + 16 bytes. The limit counts them.
constexpr std::int64_t kEncryptionBytes = 64;

std::string random_bytes(std::size_t size) {
  std::random_device random;
  std::string bytes;
  while (bytes.size() < size) {
    const auto bits = random();
    for (unsigned shift = 0; shift < 32 && bytes.size() < size; shift += 8)
      bytes.push_back(static_cast<char>((bits >> shift) & 0xff));
  }
  return bytes;
}

}  // namespace

void set_common_options(zmq::socket_t& socket) {
  // Only a bound on memory: what is under way is limited by credit.
  socket.set(zmq::sockopt::sndhwm, 4096);
  socket.set(zmq::sockopt::rcvhwm, 4096);
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(kMaxBodyBytes) + kEncryptionBytes);
  socket.set(zmq::sockopt::ipv6, true);
  socket.set(zmq::sockopt::handshake_ivl, 10'000);
  // No heartbeats of ZeroMQ's own: in 4.3.4 one that is due while input is held back, because a
  // queue is full or a handshake waits, aborts the process (libzmq issues 3937, 4364, 4767). Our
  // own messages find connections that are half-open. Firewalls forget connections that are silent.
  socket.set(zmq::sockopt::tcp_keepalive, 1);
  socket.set(zmq::sockopt::tcp_keepalive_idle, 60);
  socket.set(zmq::sockopt::tcp_keepalive_intvl, 15);
  socket.set(zmq::sockopt::tcp_keepalive_cnt, 4);
  socket.set(zmq::sockopt::tcp_maxrt, 60'000);
}

void set_server_options(zmq::socket_t& socket) {
  socket.set(zmq::sockopt::router_mandatory, true);  // an error instead of a silent drop
  socket.set(zmq::sockopt::backlog, 1024);           // all workers come back at once
}

void set_client_options(zmq::socket_t& socket) {
  socket.set(zmq::sockopt::immediate, true);  // nothing queues up for a scheduler that is away
  socket.set(zmq::sockopt::connect_timeout, 5'000);
  socket.set(zmq::sockopt::reconnect_ivl, 200);
  socket.set(zmq::sockopt::reconnect_ivl_max, 30'000);
}

bool send_message(zmq::socket_t& socket, const std::string* routing_id, MessageType type,
                  const google::protobuf::MessageLite& message) {
  OutgoingFrame frame;
  frame.header.type = type;
  frame.body = message.SerializeAsString();
  return send_frame(socket, routing_id, frame);
}

bool read_message(const std::vector<zmq::message_t>& frames, std::size_t count, MessageType type,
                  google::protobuf::MessageLite& message) {
  if (frames.size() != count) return false;
  const auto header = decode_header(bytes_of(frames[count - 2]), bytes_of(frames[count - 1]));
  return header && header->type == type && parse_body(frames[count - 1].to_string(), message);
}

std::string bound_endpoint(const zmq::socket_t& socket) {
  std::string endpoint = socket.get(zmq::sockopt::last_endpoint);
  constexpr std::string_view kMapped = "tcp://[::ffff:";
  if (endpoint.starts_with(kMapped) && endpoint.find('.') != std::string::npos) {
    endpoint.erase(endpoint.find(']'), 1);
    endpoint.replace(0, kMapped.size(), "tcp://");
  }
  return endpoint;
}

bool send_frame(zmq::socket_t& socket, const std::string* routing_id, const OutgoingFrame& frame) {
  const auto header = encode_header(frame.header, std::as_bytes(std::span(frame.body)));
  try {
    using zmq::send_flags;
    if (routing_id != nullptr &&
        !socket.send(zmq::buffer(*routing_id), send_flags::sndmore | send_flags::dontwait))
      return false;
    const auto flags =
        routing_id == nullptr ? send_flags::sndmore | send_flags::dontwait : send_flags::sndmore;
    // After the first frame was taken the rest is taken too.
    if (!socket.send(zmq::buffer(header), flags)) return false;
    return socket.send(zmq::buffer(frame.body), send_flags::none).has_value();
  } catch (const zmq::error_t& error) {
    log::debug("link.send error={}", error.what());
    return false;
  }
}

std::vector<zmq::message_t> receive_frames(zmq::socket_t& socket) {
  std::vector<zmq::message_t> frames;
  try {
    do {
      zmq::message_t frame;
      if (!socket.recv(frame, zmq::recv_flags::dontwait)) return {};
      frames.push_back(std::move(frame));
    } while (frames.back().more());
  } catch (const zmq::error_t& error) {
    log::debug("link.receive error={}", error.what());
    return {};
  }
  return frames;
}

std::span<const std::byte> bytes_of(const zmq::message_t& message) {
  return {static_cast<const std::byte*>(message.data()), message.size()};
}

std::string new_session() {
  std::string session = random_bytes(kSessionBytes);
  if (session[0] == '\0') session[0] = '\1';
  return session;
}

std::string new_routing_id(const std::string& session) {
  return session + random_bytes(kSessionBytes);
}

std::string session_of(const std::string& routing_id) {
  return routing_id.size() == 2 * kSessionBytes ? routing_id.substr(0, kSessionBytes) : routing_id;
}

std::uint64_t session_number(const std::string& session) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < std::min(session.size(), kSessionBytes); ++i)
    value |= std::uint64_t{static_cast<unsigned char>(session[i])} << (8 * i);
  return value;
}

bool parse_body(const std::string& body, google::protobuf::MessageLite& message) {
  google::protobuf::io::CodedInputStream input(reinterpret_cast<const std::uint8_t*>(body.data()),
                                               static_cast<int>(body.size()));
  input.SetRecursionLimit(kRecursionLimit);
  return body.size() <= kMaxBodyBytes && message.ParseFromCodedStream(&input) &&
         input.ConsumedEntireMessage();
}

}  // namespace saesweep::protocol
