// CUDA without its headers: libtorch's device-independent interfaces, behind which its CUDA side
// stands once it is loaded. The conventions are those of shim.cpp.

#include <dlfcn.h>

#include <memory>
#include <stdexcept>

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/util/env.h>

#include "shim.h"

using shim::guarded;

namespace {

c10::Stream stream_of(at::Device device) {
	return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

} // namespace

extern "C" {

// Whether this machine has NVIDIA's driver. Without one libtorch's CUDA side loads as well; it takes
// its time, and finds no device.
bool shim_has_cuda_driver() { return dlopen("libcuda.so.1", RTLD_LAZY) != nullptr; }

// The linker drops libtorch_cuda, which nothing refers to; CUDA exists from here on. This comes
// before anything that asks libtorch for CUDA: it remembers the answer.
int shim_load_cuda() {
	return guarded([] {
		if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL))
			throw std::runtime_error(dlerror());
	});
}

// Chooses deterministic algorithms or the fastest, before CUDA is loaded. Single precision is IEEE's
// in either case: no TF32, whatever the environment says.
void shim_set_deterministic(bool on) {
	auto &context = at::globalContext();
	context.setDeterministicAlgorithms(on, /*warn_only=*/false);
	context.setDeterministicCuDNN(on);
	context.setBenchmarkCuDNN(!on);
	context.setAllowTF32CuBLAS(false);
	context.setAllowTF32CuDNN(false);
	// cuBLAS is deterministic only with workspaces of a fixed size, and libtorch insists on it.
	if (on)
		c10::utils::set_env("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/false);
}

// A CPU tensor's copy on a CUDA device (new). The caller does not wait for what the device has to do
// before it; libtorch keeps the pinned memory until then.
int shim_to_cuda(at::Tensor *tensor, int index, at::Tensor **copy) {
	return guarded([&] {
		const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
		*copy = new at::Tensor(
		    tensor->pin_memory().to(device, tensor->scalar_type(), /*non_blocking=*/true));
	});
}

// Begins to copy a tensor to the CPU, after all that its device has to do up to here. `*copy` (new)
// may be read once `shim_end_copy` took `*event` (new, or null if there is nothing to wait for).
int shim_begin_copy(at::Tensor *tensor, at::Tensor **copy, c10::Event **event) {
	return guarded([&] {
		at::NoGradGuard guard;
		const auto device = tensor->device();
		auto made = std::make_unique<at::Tensor>(
		    tensor->to(at::kCPU, tensor->scalar_type(), /*non_blocking=*/true));
		std::unique_ptr<c10::Event> done;
		if (!device.is_cpu()) {
			done = std::make_unique<c10::Event>(device.type());
			done->record(stream_of(device));
		}
		*copy = made.release();
		*event = done.release();
	});
}

// Waits for the end of a copy.
int shim_end_copy(c10::Event *event) {
	return guarded([&] {
		std::unique_ptr<c10::Event> done(event);
		if (done)
			done->synchronize();
	});
}

// Room for a copy of a tensor in main memory (new, contiguous): pinned, if a device fills it.
int shim_host_buffer(at::Tensor *tensor, at::Tensor **buffer) {
	return guarded([&] {
		const auto options = tensor->options().requires_grad(false).device(at::kCPU);
		*buffer = new at::Tensor(
		    at::empty(tensor->sizes(), options.pinned_memory(!tensor->is_cpu())));
	});
}

// Copies tensors of one device to their buffers, all at once, and waits for the end.
int shim_fill_host_buffers(at::Tensor *const *buffers, at::Tensor *const *tensors, size_t n) {
	return guarded([&] {
		at::NoGradGuard guard;
		for (size_t i = 0; i < n; i++)
			buffers[i]->copy_(*tensors[i], /*non_blocking=*/true);
		for (size_t i = 0; i < n; i++)
			if (!tensors[i]->is_cpu())
				return stream_of(tensors[i]->device()).synchronize();
	});
}

// The most bytes of a CUDA device's memory that libtorch held so far.
int shim_cuda_peak_bytes(int index, int64_t *bytes) {
	return guarded([&] {
		const auto stats = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(
		    static_cast<c10::DeviceIndex>(index));
		const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
		*bytes = stats.reserved_bytes[all].peak;
	});
}

// The bytes of a CUDA device's memory that are free, and all it has.
int shim_cuda_memory(int index, int64_t *free, int64_t *total) {
	return guarded([&] {
		const auto info = c10::getDeviceAllocator(at::kCUDA)->getMemoryInfo(
		    static_cast<c10::DeviceIndex>(index));
		*free = static_cast<int64_t>(info.first);
		*total = static_cast<int64_t>(info.second);
	});
}

} // extern "C"
