// The release's way: Android Studio or Gradle 8.13 with the Android plugin and the NDK. Never run here (README.md).
pluginManagement {
    repositories {
        google()
        mavenCentral()
        gradlePluginPortal()
    }
}

dependencyResolutionManagement {
    repositories {
        google()
        mavenCentral()
    }
}

rootProject.name = "phi3mobile"
include(":sdk", ":sample")
