// Error handling shared by the shim's files.
#pragma once

#include <exception>
#include <string>

#include <c10/util/Exception.h>

namespace shim {

// The message of this thread's last failed call.
inline thread_local std::string error;

// Runs `f`. Returns 0 on success; otherwise sets `error` and returns 1.
template <typename F> int guarded(F f) noexcept {
	try {
		f();
		return 0;
	} catch (const c10::Error &e) {
		error = e.what_without_backtrace();
	} catch (const std::exception &e) {
		error = e.what();
	} catch (...) {
		error = "an exception of an unknown type";
	}
	return 1;
}

} // namespace shim
