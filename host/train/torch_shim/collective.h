// Types that collective.cpp and buckets.cpp share.
#pragma once

#include <chrono>
#include <exception>
#include <thread>
#include <vector>

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

struct Store {
	c10::intrusive_ptr<c10d::Store> store;
};

struct Group {
	c10::intrusive_ptr<c10d::Backend> backend;
	// Whether the operations run on a CUDA device.
	bool is_on_cuda = false;
};

// An operation in progress. It keeps its tensors alive.
struct Work {
	c10::intrusive_ptr<c10d::Work> work;
	std::vector<at::Tensor> tensors;
	bool is_on_cuda;
};

// Waits at most `limit`. Returns whether the operation is complete.
//
// Throws if the operation has failed.
inline bool wait_for(c10d::Work &work, std::chrono::milliseconds limit, bool is_on_cuda) {
	if (is_on_cuda) {
		// NCCL's `wait` only makes the device wait, without a limit.
		const auto end = std::chrono::steady_clock::now() + limit;
		while (!work.isCompleted()) {
			if (std::chrono::steady_clock::now() >= end)
				return false;
			std::this_thread::sleep_for(std::chrono::microseconds(50));
		}
		if (const auto failure = work.exception())
			std::rethrow_exception(failure);
		return work.wait();
	}
	try {
		work.wait(limit);
		return true;
	} catch (...) {
		// c10d reports both a time limit and a failure by an exception. A failed operation is complete.
		if (work.isCompleted())
			throw;
		return false;
	}
}
