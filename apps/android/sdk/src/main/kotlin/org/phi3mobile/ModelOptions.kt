package org.phi3mobile

import java.io.File

/** What a model does now. */
public enum class ModelState { LOADING, READY, ANSWERING, UNLOADED, CLOSED }

/** How a model is opened. */
public class ModelOptions @JvmOverloads constructor(
    /** Of the process's one thread pool; 0: the big cores. */
    public val threads: Int = 0,
    /** Where packed weights are kept, about as large as the program (null: packed at every start), and the KV cache of an unloaded
     * model. The app's cache folder is right: what the system removes is made again. */
    public val cache: File? = null,
    /** Bytes of memory that are free: a bundle that needs more is refused. Null: not checked. */
    public val freeMemory: Long? = null,
    /** Makes a runtime of the app's own for this bundle; null: the library's, or ExecuTorch's package where it has what the library
     * lacks. Called again after [Phi3Model.unload]. */
    public val engine: ((Manifest, File) -> Engine)? = null,
    /** Crops of a picture at most, for models that see: 4 is enough for most photos, 16 for small print, which takes four times as long.
     * Null: the model's own number. */
    public val numCrops: Int? = null,
)
