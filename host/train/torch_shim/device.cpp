// CUDA support without CUDA's headers. This file uses libtorch's device-independent interfaces, which call
// libtorch's CUDA library once that library is loaded. The conventions are those of shim.cpp.

#include <dlfcn.h>

#include <memory>
#include <stdexcept>

#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/env.h>

#include "shim.h"

using shim::guarded;

namespace {

c10::Stream stream_of(at::Device device) {
	return c10::impl::VirtualGuardImpl(device.type()).getStream(device);
}

} // namespace

extern "C" {

// Returns whether this machine has NVIDIA's driver. libtorch's CUDA library can be loaded even without the
// driver, but this is slow, and the library then finds no device.
bool shim_has_cuda_driver() { return dlopen("libcuda.so.1", RTLD_LAZY) != nullptr; }

// Loads libtorch's CUDA library. The linker drops this library, because the program refers to none of its
// symbols. Must be called before libtorch is asked whether CUDA is available, because libtorch caches the
// answer.
int shim_load_cuda() {
	return guarded([] {
		if (!dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL))
			throw std::runtime_error(dlerror());
	});
}

// Makes a CUDA device the one that this thread's operations use if they name none. CUDA must be loaded.
int shim_set_cuda_device(int index) {
	return guarded([&] {
		const at::Device device(at::kCUDA, static_cast<at::DeviceIndex>(index));
		c10::impl::getDeviceGuardImpl(at::kCUDA)->setDevice(device);
	});
}

// Selects deterministic algorithms or the fastest ones. Must be called before CUDA is loaded. Single
// precision follows IEEE 754 in both cases: TF32 is disabled, regardless of the environment.
void shim_set_deterministic(bool on) {
	auto &context = at::globalContext();
	context.setDeterministicAlgorithms(on, /*warn_only=*/false);
	context.setDeterministicCuDNN(on);
	context.setBenchmarkCuDNN(!on);
	context.setAllowTF32CuBLAS(false);
	context.setAllowTF32CuDNN(false);
	// cuBLAS is deterministic only with workspaces of a fixed size, and libtorch checks that
	// CUBLAS_WORKSPACE_CONFIG requests such workspaces.
	if (on)
		c10::utils::set_env("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/false);
}

// Copies a CPU tensor through pinned memory to a CUDA device, and stores the new tensor in `*copy`. Does not
// wait for the device's queued work, nor for the copy; libtorch keeps the pinned memory until the copy is
// complete.
int shim_to_cuda(at::Tensor *tensor, int index, at::Tensor **copy) {
	return guarded([&] {
		const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
		*copy = new at::Tensor(
		    tensor->pin_memory().to(device, tensor->scalar_type(), /*non_blocking=*/true));
	});
}

// Queues a copy of a tensor to the CPU. The copy begins after the work that is already queued on the tensor's
// device. Stores the new tensor in `*copy`. Stores a new event in `*event`, or null if there is nothing to
// wait for. The copy can be read after `shim_end_copy` is called with the event.
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

// Waits for the end of a copy, and frees the event.
int shim_end_copy(c10::Event *event) {
	return guarded([&] {
		std::unique_ptr<c10::Event> done(event);
		if (done)
			done->synchronize();
	});
}

// Allocates main memory for a copy of a tensor, and stores it in `*buffer` as a new, contiguous tensor. The
// memory is pinned if the tensor is on a device.
int shim_host_buffer(at::Tensor *tensor, at::Tensor **buffer) {
	return guarded([&] {
		const auto options = tensor->options().requires_grad(false).device(at::kCPU);
		*buffer = new at::Tensor(
		    at::empty(tensor->sizes(), options.pinned_memory(!tensor->is_cpu())));
	});
}

// Copies tensors, which must all be on one device, to their buffers concurrently. Waits until all copies are
// complete.
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

// Stores libtorch's peak memory usage on a CUDA device so far, in bytes.
int shim_cuda_peak_bytes(int index, int64_t *bytes) {
	return guarded([&] {
		const auto stats = c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(
		    static_cast<c10::DeviceIndex>(index));
		const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
		*bytes = stats.reserved_bytes[all].peak;
	});
}

// Stores a CUDA device's free and total memory, in bytes.
int shim_cuda_memory(int index, int64_t *free, int64_t *total) {
	return guarded([&] {
		const auto info = c10::getDeviceAllocator(at::kCUDA)->getMemoryInfo(
		    static_cast<c10::DeviceIndex>(index));
		*free = static_cast<int64_t>(info.first);
		*total = static_cast<int64_t>(info.second);
	});
}

} // extern "C"
