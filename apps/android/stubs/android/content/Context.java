package android.content;

public abstract class Context {
    public static final String ACTIVITY_SERVICE = "activity";
    public static final String POWER_SERVICE = "power";
    public abstract Object getSystemService(String name);
    public abstract java.io.File getFilesDir();
    public abstract java.io.File getCacheDir();
    public abstract java.io.File getExternalFilesDir(String type);
    public abstract ContentResolver getContentResolver();
    public abstract Context getApplicationContext();
    public abstract String getPackageName();
}
