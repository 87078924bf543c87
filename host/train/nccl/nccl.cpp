// c10d's process group for NCCL, which needs CUDA's headers and libtorch_cuda.

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <exception>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

// Creates the process group of `size` ranks that meet in `store`, and connects them: rank `rank` uses the CUDA device
// `device`. The caller owns one reference to `*backend`. Returns 0, or else 1 with the reason in `error`.
//
// Operations have no time limit: callers poll for their end, and stop when they learn that another rank
// has failed.
extern "C" int nccl_backend(c10d::Store *store, int rank, int size, int device,
                            c10d::Backend **backend, char *error, size_t capacity) noexcept {
	try {
		auto options = c10d::ProcessGroupNCCL::Options::create();
		options->timeout = std::chrono::hours(24 * 365);
		options->group_name = "host";
		auto shared = c10::intrusive_ptr<c10d::Store>::unsafe_reclaim_from_nonowning(store);
		auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(shared, rank, size, options);
		const at::Device place(at::kCUDA, static_cast<c10::DeviceIndex>(device));
		group->setBoundDeviceId(place);
		group->eagerConnectSingleDevice(place);
		*backend = group.release();
		return 0;
	} catch (const c10::Error &e) {
		std::snprintf(error, capacity, "%s", e.what_without_backtrace());
		return 1;
	} catch (const std::exception &e) {
		std::snprintf(error, capacity, "%s", e.what());
		return 1;
	} catch (...) {
		std::snprintf(error, capacity, "an exception of an unknown type");
		return 1;
	}
}
