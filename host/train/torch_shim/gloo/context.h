// Declarations of the parts of gloo that c10d's ProcessGroupGloo.hpp mentions. The libtorch wheel contains gloo
// but not its headers. The shim creates, derives from and destroys none of these types.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace gloo {

class Context {
  public:
	void setTimeout(std::chrono::milliseconds timeout);
};

namespace transport {

class Device;

class UnboundBuffer {
  public:
	virtual ~UnboundBuffer() = 0;
};

} // namespace transport

namespace rendezvous {

class Store {
  public:
	virtual ~Store() = default;
	virtual void set(const std::string &key, const std::vector<char> &data) = 0;
	virtual std::vector<char> get(const std::string &key) = 0;
	virtual void wait(const std::vector<std::string> &keys) = 0;
	virtual void wait(const std::vector<std::string> &keys,
	                  const std::chrono::milliseconds &timeout) = 0;
};

} // namespace rendezvous
} // namespace gloo
