plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
    `maven-publish`
}

group = "org.phi3mobile"
version = "0.2.0"

android {
    namespace = "org.phi3mobile"
    compileSdk = 35
    ndkVersion = "28.2.13676358" // from 28 on libraries have 16 KB segments by themselves
    defaultConfig {
        minSdk = 26
        consumerProguardFiles("consumer-rules.pro")
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
        externalNativeBuild {
            cmake {
                // ExecuTorch built from source for Android, with the version of the exporter's wheel: a folder ABI/ for each.
                arguments += "-DEXECUTORCH_ROOT=${providers.gradleProperty("executorch").getOrElse("")}"
                arguments += "-DANDROID_STL=c++_shared"
                targets += "phi3mobile_jni"
            }
        }
    }
    externalNativeBuild { cmake { path = file("src/main/cpp/CMakeLists.txt") } }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
    publishing {
        singleVariant("release") {
            withSourcesJar()
            withJavadocJar()
        }
    }
}

kotlin {
    explicitApi()
    compilerOptions { jvmTarget = org.jetbrains.kotlin.gradle.dsl.JvmTarget.JVM_1_8 }
}

dependencies { api("org.jetbrains.kotlinx:kotlinx-coroutines-core:1.10.2") }

publishing {
    publications {
        create<MavenPublication>("release") {
            artifactId = "phi3mobile"
            afterEvaluate { from(components["release"]) }
        }
    }
}
