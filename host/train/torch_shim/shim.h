// What the shim's files share.
#pragma once

#include <exception>
#include <string>

#include <c10/util/Exception.h>

namespace shim {

// Why this thread's last failing call failed.
inline thread_local std::string error;

// Runs `f`; 0 if it went well, else 1 and `error` says why.
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
