// torch.distributed's C++ core, c10d, without Python: the store at which the ranks of a training meet, and the
// process group whose collectives exchange tensors. The conventions are those of shim.cpp.

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>

#include <chrono>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <c10/util/env.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "collective.h"
#include "shim.h"

C10_DECLARE_int(caffe2_log_level);

using shim::guarded;
using std::chrono::milliseconds;

namespace {

std::vector<uint8_t> bytes(const uint8_t *data, size_t n) { return {data, data + n}; }

at::Tensor *new_tensor(const std::vector<uint8_t> &bytes) {
	auto tensor = at::empty({static_cast<int64_t>(bytes.size())}, at::kByte);
	std::copy(bytes.begin(), bytes.end(), tensor.data_ptr<uint8_t>());
	return new at::Tensor(tensor);
}

Work *new_work(const Group &group, c10::intrusive_ptr<c10d::Work> work,
               std::vector<at::Tensor> tensors) {
	return new Work{std::move(work), std::move(tensors), group.is_on_cuda};
}

} // namespace

extern "C" {

// Disables c10d's own messages on stderr, which contain C++ stacks. The shim's callers report each failure.
void shim_quiet_c10d() { FLAGS_caffe2_log_level = 3; }

// Connects to the store at `host` and `port`. With `serve`, first starts the store in this process; a `port` of
// 0 then selects a free port. Stores the port in `*bound`. Keys get the prefix `prefix`.
int shim_store_open(const char *host, uint16_t port, bool serve, const char *prefix,
                    int64_t timeout_ms, Store **store, uint16_t *bound) {
	return guarded([&] {
		c10d::TCPStoreOptions options;
		options.port = port;
		options.isServer = serve;
		options.waitWorkers = false;
		options.timeout = milliseconds(timeout_ms);
		auto tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
		*bound = tcp->getPort();
		*store = new Store{c10::make_intrusive<c10d::PrefixStore>(prefix, tcp)};
	});
}

int shim_store_set(Store *store, const char *key, const uint8_t *data, size_t n) {
	return guarded([&] { store->store->set(key, bytes(data, n)); });
}

// Stores the value of `key` in `*value`, a new 1-d u8 tensor, or null if the key does not exist.
int shim_store_get(Store *store, const char *key, at::Tensor **value) {
	return guarded([&] {
		*value = store->store->check({key}) ? new_tensor(store->store->get(key)) : nullptr;
	});
}

// Sets `key` if it does not exist. Stores the key's value after the call in `*value`.
int shim_store_set_first(Store *store, const char *key, const uint8_t *data, size_t n,
                         at::Tensor **value) {
	return guarded([&] {
		const auto own = bytes(data, n);
		const auto found = store->store->compareSet(key, {}, own);
		*value = new_tensor(found.empty() ? own : found);
	});
}

void shim_store_free(Store *store) { delete store; }

// Creates a Gloo process group of `size` ranks that meet under `prefix` in the store. Each rank accepts
// connections at the numeric `address`, or at the interfaces in `interfaces` (separated by commas) if it is not
// empty. The ranks must connect within `timeout_ms`. Operations have no time limit: callers wait in slices, and
// stop when they learn that another rank has failed.
int shim_group_open(Store *store, const char *prefix, int rank, int size, const char *address,
                    const char *interfaces, int64_t timeout_ms, Group **group) {
	return guarded([&] {
		auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
		std::string names = interfaces;
		while (!names.empty()) {
			const auto comma = names.find(',');
			const auto name = names.substr(0, comma);
			names = comma == std::string::npos ? "" : names.substr(comma + 1);
			if (!name.empty())
				options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name));
		}
		if (options->devices.empty())
			options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
		auto prefixed = c10::make_intrusive<c10d::PrefixStore>(prefix, store->store);
		auto backend =
		    c10::make_intrusive<c10d::ProcessGroupGloo>(prefixed, rank, size, options);
		backend->setTimeout(std::chrono::hours(24 * 365));
		*group = new Group{std::move(backend), false};
	});
}

// Creates an NCCL process group of `size` ranks that meet under `prefix` in the store. This rank uses the CUDA device
// `device`. `library` is the path of libhost_nccl.so. Waits for the other ranks without a time limit. As with Gloo,
// operations have no time limit.
int shim_group_open_nccl(Store *store, const char *prefix, int rank, int size, int device,
                         const char *library, Group **group) {
	return guarded([&] {
		// c10d would end the process when another rank fails, before the reason is known. torchrun sets this variable.
		c10::utils::set_env("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", /*overwrite=*/true);
		void *opened = dlopen(library, RTLD_NOW | RTLD_LOCAL);
		if (!opened)
			throw std::runtime_error(dlerror());
		using Create = int(c10d::Store *, int, int, int, c10d::Backend **, char *, size_t);
		auto *create = reinterpret_cast<Create *>(dlsym(opened, "host_nccl_backend"));
		if (!create)
			throw std::runtime_error(dlerror());
		auto prefixed = c10::make_intrusive<c10d::PrefixStore>(prefix, store->store);
		c10d::Backend *backend = nullptr;
		char error[4096] = "";
		if (create(prefixed.get(), rank, size, device, &backend, error, sizeof error) != 0)
			throw std::runtime_error(error);
		*group = new Group{c10::intrusive_ptr<c10d::Backend>::reclaim(backend), true};
	});
}

// Starts to replace `tensor`, which must be contiguous, with its sum over all ranks.
int shim_group_all_reduce(Group *group, at::Tensor *tensor, Work **work) {
	return guarded([&] {
		std::vector<at::Tensor> tensors{*tensor};
		*work = new_work(*group, group->backend->allreduce(tensors), tensors);
	});
}

// Starts to replace `tensor`, which must be contiguous, with that of rank 0.
int shim_group_broadcast(Group *group, at::Tensor *tensor, Work **work) {
	return guarded([&] {
		std::vector<at::Tensor> tensors{*tensor};
		*work = new_work(*group, group->backend->broadcast(tensors), tensors);
	});
}

// Starts to copy the ranks' tensors `own`, all of the same shape, to the rows of `all`.
int shim_group_all_gather(Group *group, at::Tensor *all, at::Tensor *own, Work **work) {
	return guarded([&] {
		*work = new_work(*group, group->backend->_allgather_base(*all, *own), {*all, *own});
	});
}

// Waits at most `timeout_ms` for an operation, and stores in `*done` whether it is complete.
int shim_work_wait(Work *work, int64_t timeout_ms, bool *done) {
	return guarded([&] { *done = wait_for(*work->work, milliseconds(timeout_ms), work->is_on_cuda); });
}

void shim_work_free(Work *work) { delete work; }

// Waits for operations that are in progress, so do not call this after a failure.
void shim_group_free(Group *group) { delete group; }

// Marks every open file descriptor above 2 as close-on-exec. Gloo's sockets are not, and a child process that
// inherits them would keep this rank's connections open after its death.
void shim_close_on_exec() {
	DIR *folder = opendir("/proc/self/fd");
	if (!folder)
		return;
	while (const dirent *entry = readdir(folder)) {
		const int fd = std::atoi(entry->d_name);
		if (fd > 2)
			fcntl(fd, F_SETFD, fcntl(fd, F_GETFD) | FD_CLOEXEC);
	}
	closedir(folder);
}

} // extern "C"
