// What TensorFlow's C API cannot do, or declares and does not export.
#include "emulated_gpu.h"
#include "tensorflow/c/tf_status_internal.h"
#include "tensorflow/c/tf_tensor_internal.h"
#include "tensorflow/core/common_runtime/pluggable_device/pluggable_device_factory.h"
#include "tensorflow/core/framework/device.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/ref_var.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace {

using tensorflow::Device;

// Above that of TensorFlow's own factory for plugins, 220.
constexpr int kPriority = 230;

// TensorFlow's own factory calls every device by the platform's name, whatever the plugin says
// (`CPlatform::DescriptionForDevice` in c/experimental/stream_executor/stream_executor.cc). This
// one shows what is shown of GPUs with CUDA, in the words of common_runtime/gpu/gpu_device.cc.
class NamedDeviceFactory : public tensorflow::PluggableDeviceFactory {
 public:
  NamedDeviceFactory() : PluggableDeviceFactory("GPU", PLATFORM_NAME) {}

  absl::Status GetDeviceDetails(int index,
                                std::unordered_map<std::string, std::string>* details) override {
    (*details)["device_name"] = gpu_of(index)->name;
    (*details)["compute_capability"] = gpu_of(index)->capability;
    return absl::OkStatus();
  }

  absl::Status CreateDevices(const tensorflow::SessionOptions& options,
                             const std::string& name_prefix,
                             std::vector<std::unique_ptr<Device>>* devices) override {
    const size_t before = devices->size();
    TF_RETURN_IF_ERROR(PluggableDeviceFactory::CreateDevices(options, name_prefix, devices));
    for (size_t i = before; i < devices->size(); i++) Describe((*devices)[i].get());
    return absl::OkStatus();
  }

 private:
  // A device's attributes are never written after it was made, which it just was.
  static void Describe(Device* device) {
    auto& attributes = const_cast<tensorflow::DeviceAttributes&>(device->attributes());
    const int index = device->tensorflow_accelerator_device_info()->gpu_id;
    const Gpu* gpu = gpu_of(index);
    attributes.set_physical_device_desc(absl::StrCat("device: ", index, ", name: ", gpu->name,
                                                     ", pci bus id: ", gpu->pci_bus_id,
                                                     ", compute capability: ", gpu->capability));
  }
};

}  // namespace

void register_device_names(void) {
  tensorflow::DeviceFactory::Register("GPU", std::make_unique<NamedDeviceFactory>(), kPriority,
                                      /*is_pluggable_device=*/true);
}

TF_Tensor* read_variable(TF_OpKernelContext* c_context, int input, TF_Status* status) {
  auto* context = reinterpret_cast<tensorflow::OpKernelContext*>(c_context);
  tensorflow::core::RefCountPtr<tensorflow::Var> variable;
  status->status = tensorflow::LookupResource(
      context, tensorflow::HandleFromInput(context, input), &variable);
  if (!status->status.ok()) return nullptr;
  tensorflow::tf_shared_lock lock(*variable->mu());
  return tensorflow::TF_TensorFromTensor(*variable->tensor(), &status->status);
}

void assign_reference(TF_OpKernelContext* c_context, bool use_locking, bool validate_shape) {
  tensorflow::AssignRefVariable(
      reinterpret_cast<tensorflow::OpKernelContext*>(c_context), /*input_ref_index=*/0,
      /*output_ref_index=*/0, /*value_index=*/1, use_locking, validate_shape,
      /*relax_constraints=*/false,
      [](tensorflow::OpKernelContext*, tensorflow::Tensor* to, const tensorflow::Tensor& from) {
        memcpy(to->data(), from.data(), from.TotalBytes());
      });
}
